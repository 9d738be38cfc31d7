// Decontamination: which documents hold a run of tokens that a benchmark's text holds.
#pragma once

#include <algorithm>
#include <string>

#include "factory_text.h"

namespace ziya {

class GramSet {
  public:
    // Texts shorter than `grams` tokens count as a whole, down to `shortest` tokens.
    GramSet(uint32_t grams, uint32_t shortest) : grams_(grams), shortest_(shortest), keys_(1 << 12), owners_(1 << 12) {
        if (!shortest || shortest > grams) throw std::invalid_argument("grams must be at least shortest, and that at least 1");
        lengths_.push_back(grams);
    }

    // False for a text that is too short to be looked for.
    bool add(std::string_view text, uint32_t owner) {
        std::vector<uint64_t> tokens;
        for_tokens(text, false, [&](uint64_t hash, Class) { tokens.push_back(hash); });
        if (tokens.size() < shortest_) return false;
        const uint32_t length = std::min<size_t>(grams_, tokens.size());
        if (std::find(lengths_.begin(), lengths_.end(), length) == lengths_.end()) lengths_.push_back(length);
        Run run(length);
        for (size_t at = 0; at < tokens.size(); ++at)
            if (run.take(tokens, at)) insert(run.key(), owner);
        return true;
    }

    // out: number of hits; owner of the first one; its first byte and the byte behind it.
    void find(std::string_view text, int64_t* out) const {
        std::fill(out, out + 4, 0);
        std::vector<uint64_t> tokens;
        std::vector<const char*> ends;
        walk_tokens(text, false, [&](uint64_t hash, Class, const char* end) { tokens.push_back(hash), ends.push_back(end); });
        size_t first = tokens.size();
        for (const uint32_t length : lengths_) {
            Run run(length);
            for (size_t at = 0; at < tokens.size(); ++at) {
                if (!run.take(tokens, at)) continue;
                const int64_t owner = lookup(run.key());
                if (owner < 0) continue;
                if (at < first || !out[0]) {
                    first = at;
                    out[1] = owner;
                    out[2] = at >= length ? ends[at - length] - text.data() : 0;
                    out[3] = ends[at] - text.data();
                }
                ++out[0];
            }
        }
    }
    size_t size() const { return size_; }

  private:
    // The hash of the last `length` tokens, made from the one before (Rabin and Karp).
    struct Run {
        explicit Run(uint32_t n) : length(n) {
            for (uint32_t at = 0; at < n; ++at) power *= BASE;
        }
        bool take(const std::vector<uint64_t>& tokens, size_t at) {
            hash = hash * BASE + tokens[at];
            if (at >= length) hash -= power * tokens[at - length];
            return at + 1 >= length;
        }
        uint64_t key() const { return mix(length, hash) | 1; }  // 0 marks an empty place
        static constexpr uint64_t BASE = 0x9E3779B97F4A7C15ull;
        uint32_t length;
        uint64_t power = 1, hash = 0;
    };

    int64_t lookup(uint64_t key) const {
        for (size_t at = key >> 20 & (keys_.size() - 1); keys_[at]; at = (at + 1) & (keys_.size() - 1))
            if (keys_[at] == key) return owners_[at];
        return -1;
    }
    void insert(uint64_t key, uint32_t owner) {
        if (lookup(key) >= 0) return;
        if (2 * ++size_ > keys_.size()) {
            std::vector<uint64_t> keys(2 * keys_.size());
            std::vector<uint32_t> owners(keys.size());
            keys.swap(keys_), owners.swap(owners_);
            for (size_t at = 0; at < keys.size(); ++at)
                if (keys[at]) place(keys[at], owners[at]);
        }
        place(key, owner);
    }
    void place(uint64_t key, uint32_t owner) {
        size_t at = key >> 20 & (keys_.size() - 1);
        while (keys_[at]) at = (at + 1) & (keys_.size() - 1);
        keys_[at] = key, owners_[at] = owner;
    }

    uint32_t grams_, shortest_;
    size_t size_ = 0;
    std::vector<uint32_t> lengths_;
    std::vector<uint64_t> keys_;
    std::vector<uint32_t> owners_;
};

}  // namespace ziya
