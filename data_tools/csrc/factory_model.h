// An n-gram language model with modified Kneser-Ney smoothing, interpolated (Chen and Goodman 1998, as KenLM's lmplz).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <stdexcept>
#include <string>

#include "factory_text.h"

namespace ziya {

constexpr int LONGEST = 8;              // the highest order one may ask for
constexpr size_t AHEAD = 8;             // tokens whose grams are fetched before they are asked for
constexpr uint64_t START = 11, END = 12;  // stand for <s> and </s>; a token's hash is never so small in practice

// The keys of the grams that end at a position: key[n] covers n tokens, built from the last one leftwards, so that
// key[n - 1] is the same gram without its first token, and the position before holds the gram without its last.
struct Keys {
    uint64_t key[LONGEST + 1];
    int longest;
};

inline Keys keys_at(const std::vector<uint64_t>& line, size_t position, int order) {
    Keys keys;
    keys.key[0] = 5;
    keys.longest = static_cast<int>(std::min<size_t>(order, position + 1));
    for (int n = 1; n <= keys.longest; ++n) keys.key[n] = mix(keys.key[n - 1], line[position - n + 1]);
    return keys;
}

// Lines of a text as token hashes between START and END; empty lines are left out.
template <class Take>
inline void for_lines(std::string_view text, std::vector<uint64_t>& line, Take take) {
    while (!text.empty()) {
        const size_t stop = std::min(text.find('\n'), text.size());
        line.assign(1, START);
        for_tokens(text.substr(0, stop), true, [&](uint64_t hash, Class) { line.push_back(hash); });
        text.remove_prefix(std::min(stop + 1, text.size()));
        if (line.size() == 1) continue;
        line.push_back(END);
        take(line);
    }
}

// Open addressing over 64-bit keys; a key of 0 is an empty slot.
template <class Entry>
class Table {
  public:
    explicit Table(size_t expected = 8) { resize(expected); }

    Entry* find(uint64_t key) {
        for (size_t at = key & mask_;; at = (at + 1) & mask_) {
            if (slots_[at].key == key) return &slots_[at];
            if (!slots_[at].key) return nullptr;
        }
    }
    const Entry* find(uint64_t key) const { return const_cast<Table*>(this)->find(key); }
    void prefetch(uint64_t key) const { __builtin_prefetch(&slots_[key & mask_]); }

    Entry& insert(uint64_t key) {
        if ((size_ + 1) * 3 > slots_.size() * 2) grow();
        size_t at = key & mask_;
        for (; slots_[at].key; at = (at + 1) & mask_)
            if (slots_[at].key == key) return slots_[at];
        ++size_;
        slots_[at].key = key;
        return slots_[at];
    }
    size_t size() const { return size_; }
    template <class Take>
    void each(Take take) {
        for (Entry& entry : slots_)
            if (entry.key) take(entry);
    }

  private:
    void resize(size_t expected) {
        size_t capacity = 16;
        while (capacity * 2 < expected * 3) capacity *= 2;
        slots_.assign(capacity, Entry{});
        mask_ = capacity - 1;
    }
    void grow() {
        std::vector<Entry> old = std::move(slots_);
        resize(size_ * 3);
        for (const Entry& entry : old) {
            if (!entry.key) continue;
            size_t at = entry.key & mask_;
            while (slots_[at].key) at = (at + 1) & mask_;
            slots_[at] = entry;
        }
    }
    std::vector<Entry> slots_;
    size_t mask_ = 0, size_ = 0;
};

struct Scored {
    uint64_t key = 0;
    float log_probability = 0, back_off = 0;  // natural logarithms
};

struct Header {
    char magic[8];
    uint32_t order;
    char language[4];
    uint64_t grams, tokens;
    float unknown;
    uint32_t padding;
};
constexpr char MAGIC[8] = {'Z', 'I', 'Y', 'A', 'L', 'M', '1', 0};

class LanguageModel {
  public:
    Header header{};

    static LanguageModel load(const std::string& path) {
        std::FILE* file = std::fopen(path.c_str(), "rb");
        if (!file) throw FileError(path + " cannot be opened; train it with `ziya factory train-scorer`");
        LanguageModel model;
        bool fine = std::fread(&model.header, sizeof(Header), 1, file) == 1 &&
                    !std::memcmp(model.header.magic, MAGIC, sizeof MAGIC) && model.header.order <= LONGEST;
        std::vector<Scored> grams;
        if (fine) {
            std::fseek(file, 0, SEEK_END);
            fine = static_cast<uint64_t>(std::ftell(file)) == sizeof(Header) + model.header.grams * sizeof(Scored);
            std::fseek(file, sizeof(Header), SEEK_SET);
        }
        if (fine) {
            grams.resize(model.header.grams);
            fine = std::fread(grams.data(), sizeof(Scored), grams.size(), file) == grams.size();
        }
        std::fclose(file);
        if (!fine)
            throw std::invalid_argument(path + " is not a whole scorer file; train it again with `ziya factory train-scorer`");
        model.table_ = Table<Scored>(grams.size());
        for (const Scored& gram : grams) model.table_.insert(gram.key) = gram;
        return model;
    }

    // Sum of natural log probabilities of every token and of each line's end, and how many there were.
    std::pair<double, size_t> score(std::string_view text) const {
        std::vector<uint64_t> line;
        double total = 0;
        size_t count = 0;
        for_lines(text, line, [&](const std::vector<uint64_t>& tokens) {
            float back_off[LONGEST + 1] = {};
            const Scored* start = table_.find(keys_at(tokens, 0, 1).key[1]);
            back_off[1] = start ? start->back_off : 0;
            int known = 1;  // how long a gram ending at the position before is in the table
            // The table does not fit into the processor's cache: what a token asks for is fetched while others are done.
            Keys ring[AHEAD];
            const auto fetch = [&](size_t at) {
                if (at >= tokens.size()) return;
                Keys& keys = ring[at % AHEAD] = keys_at(tokens, at, static_cast<int>(header.order));
                for (int n = 1; n <= keys.longest; ++n) table_.prefetch(keys.key[n]);
            };
            for (size_t at = 1; at < AHEAD; ++at) fetch(at);
            for (size_t at = 1; at < tokens.size(); ++at) {
                fetch(at + AHEAD - 1);
                const Keys& keys = ring[at % AHEAD];
                float next[LONGEST + 1] = {};
                float log_probability = header.unknown;
                int found = 0;
                // A gram is only kept with its own tail, so the first miss ends the search.
                while (found < keys.longest) {
                    const Scored* gram = table_.find(keys.key[found + 1]);
                    if (!gram) break;
                    log_probability = gram->log_probability;
                    next[++found] = gram->back_off;
                }
                total += log_probability;
                const int context = std::min(known, static_cast<int>(header.order) - 1);
                for (int n = std::max(found, 1); n <= context; ++n) total += back_off[n];
                std::copy(next, next + LONGEST + 1, back_off);
                known = found;
            }
            count += tokens.size() - 1;
        });
        return {total, count};
    }

  private:
    Table<Scored> table_;
};

}  // namespace ziya
