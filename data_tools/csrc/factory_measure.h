// One walk over a document that counts everything the rules ask for. The names of the counts are in FACTS.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>
#include <unordered_map>

#include "factory_text.h"

namespace ziya {

#define ZIYA_FACTS(X)                                                                                              \
    X(characters) X(han) X(kana) X(hangul) X(latin) X(other_letters) X(digits) X(spaces) X(punctuation) X(symbols) \
    X(uppercase) X(brackets) X(braces) X(replacement) X(url_characters) X(sentence_ends) X(longest_run)            \
    X(lines) X(short_lines) X(bullet_lines) X(ellipsis_lines) X(ended_lines) X(code_lines) X(longest_line)         \
    X(repeated_line_characters) X(words) X(word_characters) X(tokens) X(distinct_tokens) X(stop_words)             \
    X(repeated_grams) X(top_pair) X(mark_runs) X(wordless_lines) X(longest_number) \
    X(advert) X(toxic) X(navigation)

enum Fact : int {
#define X(name) name,
    ZIYA_FACTS(X)
#undef X
        FACT_COUNT
};

constexpr const char* FACT_NAMES[] = {
#define X(name) #name,
    ZIYA_FACTS(X)
#undef X
};

constexpr size_t GRAM = 8;         // tokens in a gram that should hardly ever come twice in one text
constexpr uint32_t SHORT_LINE = 10;  // columns, two a Chinese character; menus and tables are made of shorter ones

inline bool ends_sentence(uint32_t code) {
    return code == '.' || code == '!' || code == '?' || code == 0x3002 || code == 0xFF01 || code == 0xFF1F || code == 0xFF0E;
}
inline bool closes(uint32_t code) {  // may stand behind a sentence's end
    return code == '"' || code == '\'' || code == ')' || code == 0x201D || code == 0x2019 || code == 0xFF09 ||
           code == 0x300D || code == 0x300F;
}
inline bool is_bullet(uint32_t code) {
    return code == '-' || code == '*' || code == '+' || code == 0x2022 || code == 0x2023 || code == 0x25CF ||
           code == 0x25AA || code == 0x25A0 || code == 0x25C6 || code == 0x2219 || code == 0x00B7 || code == 0x25CB || code == 0x2013;
}

class Measure {
  public:
    // lists: the phrases of `advert`, `toxic` and `navigation`, in this order.
    Measure(const std::vector<std::string>& stop_words, const std::vector<std::vector<std::string>>& lists) : first_(1 << 13) {
        if (lists.size() != FACT_COUNT - advert) throw std::invalid_argument("Measure takes three lists of phrases");
        for (const std::string& word : stop_words)
            for (const uint64_t token : tokens_of(word)) entry(token).stop_word = true;
        for (size_t list = 0; list < lists.size(); ++list)
            for (const std::string& phrase : lists[list]) {
                const std::vector<uint64_t> tokens = tokens_of(phrase);
                if (!tokens.empty()) entry(tokens[0]).phrases.emplace_back(list, tokens);
            }
    }

    void operator()(std::string_view text, double* facts) const {
        uint64_t seen[FACT_COUNT] = {}, by_class[CONTROL + 1] = {};
        std::vector<std::pair<uint64_t, uint32_t>> lines;
        for (size_t from = 0; from < text.size();) {
            const size_t stop = std::min(text.find('\n', from), text.size());
            line(text.substr(from, stop - from), seen, by_class, lines);
            from = stop + 1;
        }
        for (int kind = 0; kind <= CONTROL; ++kind) {
            seen[characters] += by_class[kind];
            seen[OF_CLASS[kind]] += by_class[kind];
        }
        std::sort(lines.begin(), lines.end());
        for (size_t at = 1; at < lines.size(); ++at)
            if (lines[at].first == lines[at - 1].first) seen[repeated_line_characters] += lines[at].second;
        std::copy(seen, seen + FACT_COUNT, facts);
        count_tokens(text, facts);
    }

  private:
    void line(std::string_view text, uint64_t* seen, uint64_t* by_class, std::vector<std::pair<uint64_t, uint32_t>>& lines) const {
        const char* at = text.data();
        const char* end = at + text.size();
        const char* url_end = at;
        uint32_t length = 0, columns = 0, run = 0, previous = 0, last = 0, before_last = 0, first = 0, stretch = 0, words_in = 0, all = 0;
        uint64_t hash = 0, most = 0;
        while (at < end) {
            if (at >= url_end && (*at == 'h' || *at == 'w')) url_end = std::max(url_end, url_at(at, end));
            if (at < url_end) ++seen[url_characters];
            const uint32_t code = next_code(at);
            const Class kind = class_of(code);
            ++by_class[kind], ++all;
            run = code == previous ? run + 1 : 1;
            previous = code;
            if (kind != SPACE) {
                ++length;
                columns += code < 0x1100 ? 1 : 2;
                hash = mix(hash, code);
                if (!first) first = code;
            }
            if (kind >= HAN && kind <= LETTER) {  // most are letters; none of them is what is asked for below
                ++words_in;
                most = std::max<uint64_t>(most, run);
                seen[uppercase] += kind == LATIN && code >= 'A' && code <= 'Z';
                stretch = 0, before_last = last, last = code;
                continue;
            }
            if (kind == DIGIT) ++words_in, most = std::max<uint64_t>(most, run), seen[longest_number] = std::max<uint64_t>(seen[longest_number], ++stretch);
            else if (!joins_digits(code)) stretch = 0;
            if (kind == SPACE) continue;
            if (kind >= PUNCTUATION) {
                count_mark(code, seen);
                if (run >= 3 && run == too_many(code)) ++seen[mark_runs];
            }
            if (ends_sentence(code)) seen[sentence_ends] += !ends_sentence(last);
            if (!closes(code) || !ends_sentence(last)) before_last = last, last = code;
        }
        seen[longest_run] = std::max(seen[longest_run], most);
        seen[wordless_lines] += all >= 4 && !words_in;
        ++seen[characters], ++seen[spaces];  // the line's own end
        if (!length) return;
        lines.emplace_back(hash, length);
        ++seen[Fact::lines];
        seen[short_lines] += columns < SHORT_LINE;
        seen[bullet_lines] += is_bullet(first);
        seen[ellipsis_lines] += last == 0x2026 || (last == '.' && before_last == '.');
        seen[ended_lines] += ends_sentence(last) || last == 0x2026;
        seen[code_lines] += last == ';' || last == '{' || last == '}' || first == '}' ||
                            (last == ')' && before_last == '(');
        seen[longest_line] = std::max<uint64_t>(seen[longest_line], length);
    }

    // The count that a class goes into, in the order of Class.
    static constexpr Fact OF_CLASS[] = {spaces, han, kana, hangul, latin, other_letters, digits, punctuation, symbols, symbols};

    // From how many of a mark on end the rule mark_runs shortens them; 0 for one that it leaves.
    static uint32_t too_many(uint32_t code) {
        switch (code) {
            case '!': case '?': case ',': case '~': case ';': case 0x3001: case 0x3002: case 0xFF01: case 0xFF0C:
            case 0xFF1B: case 0xFF1F: case 0xFF5E: case 0x2026: return 3;
            case '-': case '_': case '=': case '*': case '#': case 0x2014: return 4;
            case '.': return 7;
            default: return 0;
        }
    }
    static bool joins_digits(uint32_t code) {  // may stand within a telephone, card or identity number
        return code == ' ' || code == '-' || code == '.' || code == '(' || code == ')' || code == '+';
    }
    static void count_mark(uint32_t code, uint64_t* seen) {
        if (code == '[' || code == ']' || code == '(' || code == ')' || code == 0xFF08 || code == 0xFF09 ||
            code == 0x3010 || code == 0x3011)
            ++seen[brackets];
        if (code == '{' || code == '}') ++seen[braces];
        if (code == 0xFFFD) ++seen[replacement];
    }

    static const char* url_at(const char* at, const char* end) {
        if (end - at < 2 || at[1] != (*at == 'h' ? 't' : 'w')) return at;
        const std::string_view rest(at, static_cast<size_t>(end - at));
        if (rest.compare(0, 7, "http://") && rest.compare(0, 8, "https://") && rest.compare(0, 4, "www.")) return at;
        const auto goes_on = [](unsigned char c) { return c > ' ' && c < 0x80 && c != '"' && c != '>' && c != ')'; };
        while (at < end && goes_on(static_cast<unsigned char>(*at))) ++at;
        return at;
    }

    void count_tokens(std::string_view text, double* facts) const {
        std::vector<uint64_t> all;
        for_tokens(text, false, [&](uint64_t hash, Class kind) {
            all.push_back(hash);
            if (kind == LATIN || kind == LETTER) ++facts[words];
        });
        for (size_t at = 0; at < all.size(); ++at)
            if (first_[all[at] >> 51]) look_up(all, at, facts);
        facts[word_characters] = facts[latin] + facts[other_letters];
        facts[tokens] = static_cast<double>(all.size());
        if (all.empty()) return;
        Tally grams(all.size()), pairs(all.size()), single(all.size());
        uint64_t hash = 0, power = 1;  // of the last GRAM tokens, made from the one before (Rabin and Karp)
        uint32_t most = 0;
        for (size_t at = 0; at < GRAM; ++at) power *= BASE;
        std::vector<uint32_t> times(pairs.size());
        for (size_t at = 0; at < all.size(); ++at) {
            single.add(all[at]);
            if (at) most = std::max(most, ++times[pairs.add(mix(all[at - 1], all[at]))]);
            hash = hash * BASE + all[at] - (at >= GRAM ? power * all[at - GRAM] : 0);
            if (at + 1 >= GRAM) grams.add(hash);
        }
        if (all.size() >= GRAM)
            facts[repeated_grams] = 1 - static_cast<double>(grams.distinct) / static_cast<double>(all.size() + 1 - GRAM);
        facts[top_pair] = 2.0 * static_cast<double>(most) / static_cast<double>(all.size());
        facts[distinct_tokens] = static_cast<double>(single.distinct);
    }

    // How many different keys there are. It holds their upper halves, and where they lie says some more of the lower ones:
    // two keys out of a million are taken for one with a chance of one in thousands.
    struct Tally {
        explicit Tally(size_t keys) {
            size_t places = 16;
            while (places < 2 * keys) places *= 2;
            halves.resize(places);
        }
        // The place of the key.
        size_t add(uint64_t key) {
            const uint32_t half = std::max<uint32_t>(static_cast<uint32_t>(key >> 32), 1);  // 0 marks an empty place
            size_t at = (key ^ key >> 32) & (halves.size() - 1);
            while (halves[at] && halves[at] != half) at = (at + 1) & (halves.size() - 1);
            distinct += !halves[at];
            halves[at] = half;
            return at;
        }
        size_t size() const { return halves.size(); }
        std::vector<uint32_t> halves;
        size_t distinct = 0;
    };

    static std::vector<uint64_t> tokens_of(std::string_view text) {
        std::vector<uint64_t> tokens;
        for_tokens(text, false, [&](uint64_t hash, Class) { tokens.push_back(hash); });
        return tokens;
    }

    struct Entry {
        bool stop_word = false;
        std::vector<std::pair<size_t, std::vector<uint64_t>>> phrases;  // of which list
    };
    Entry& entry(uint64_t token) {
        first_[token >> 51] = true;
        return entries_[token];
    }
    void look_up(const std::vector<uint64_t>& all, size_t at, double* facts) const {
        const auto found = entries_.find(all[at]);
        if (found == entries_.end()) return;
        facts[stop_words] += found->second.stop_word;
        bool counted[FACT_COUNT - advert] = {};
        for (const auto& [list, phrase] : found->second.phrases) {
            if (counted[list] || at + phrase.size() > all.size()) continue;
            counted[list] = std::equal(phrase.begin(), phrase.end(), all.begin() + at);
            facts[advert + list] += counted[list];
        }
    }

    static constexpr uint64_t BASE = 0x9E3779B97F4A7C15ull;
    std::unordered_map<uint64_t, Entry> entries_;
    std::vector<char> first_;  // whether any entry's hash begins with these 13 bits
};

// Which of some sets of characters a text holds one of, or of some pairs of sets two neighbours: so that a pattern is only
// searched for where it can be found. Bit i stands for sets[i]: (first, second), the latter empty for a single character.
// Sets are of the basic plane; every character above it belongs to all single sets and to no pair.
class Scanner {
  public:
    using Set = std::vector<uint16_t>;
    explicit Scanner(const std::vector<std::pair<Set, Set>>& sets) : kinds_(0x10000) {
        if (sets.size() > 32) throw std::invalid_argument("a scanner takes at most 32 sets");
        for (size_t at = 0; at < sets.size(); ++at) {
            const auto& [first, second] = sets[at];
            const uint32_t bit = 1u << at;
            if (second.empty()) above_ |= bit;
            for (const uint16_t code : first) (second.empty() ? kinds_[code].alone : kinds_[code].first) |= bit;
            for (const uint16_t code : second) kinds_[code].second |= bit;
        }
    }
    uint32_t operator()(std::string_view text) const {
        uint32_t found = 0, before = 0;
        for (const char* at = text.data(); at < text.data() + text.size();) {
            const uint32_t code = next_code(at);
            if (code >= 0x10000) {
                found |= above_, before = 0;
                continue;
            }
            const Kind& kind = kinds_[code];
            found |= kind.alone | (before & kind.second);
            before = kind.first;
        }
        return found;
    }

  private:
    struct Kind {
        uint32_t alone = 0, first = 0, second = 0;
    };
    std::vector<Kind> kinds_;
    uint32_t above_ = 0;
};

}  // namespace ziya
