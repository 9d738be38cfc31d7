// One walk over a document that counts everything the rules ask for. The names of the counts are in FACTS.
#pragma once

#include <algorithm>
#include <string>
#include <unordered_map>
#include <unordered_set>

#include "factory_text.h"

namespace ziya {

#define ZIYA_FACTS(X)                                                                                              \
    X(characters) X(han) X(kana) X(hangul) X(latin) X(other_letters) X(digits) X(spaces) X(punctuation) X(symbols) \
    X(uppercase) X(brackets) X(braces) X(replacement) X(url_characters) X(sentence_ends) X(longest_run)            \
    X(lines) X(short_lines) X(bullet_lines) X(ellipsis_lines) X(ended_lines) X(code_lines) X(longest_line)         \
    X(repeated_line_characters) X(words) X(word_characters) X(tokens) X(distinct_tokens) X(stop_words)             \
    X(repeated_grams) X(top_pair)

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

// Words and phrases to look for, compared token by token: whole words in English, runs of characters in Chinese, in any
// case and width and whatever stands between the tokens.
class WordList {
  public:
    explicit WordList(const std::vector<std::string>& phrases) {
        for (const std::string& phrase : phrases) {
            std::vector<uint64_t> tokens;
            for_tokens(phrase, false, [&](uint64_t hash, Class) { tokens.push_back(hash); });
            if (!tokens.empty()) phrases_[tokens[0]].push_back(tokens);
        }
    }

    uint32_t count(std::string_view text) const {
        std::vector<uint64_t> tokens;
        for_tokens(text, false, [&](uint64_t hash, Class) { tokens.push_back(hash); });
        uint32_t found = 0;
        for (size_t at = 0; at < tokens.size(); ++at) {
            const auto candidates = phrases_.find(tokens[at]);
            if (candidates == phrases_.end()) continue;
            for (const auto& phrase : candidates->second)
                if (at + phrase.size() <= tokens.size() && std::equal(phrase.begin(), phrase.end(), tokens.begin() + at)) {
                    ++found;
                    break;
                }
        }
        return found;
    }

  private:
    std::unordered_map<uint64_t, std::vector<std::vector<uint64_t>>> phrases_;
};

class Measure {
  public:
    explicit Measure(const std::vector<std::string>& stop_words) {
        for (const std::string& word : stop_words) {
            uint64_t hash = 0;
            for_tokens(word, false, [&](uint64_t token, Class) { hash = token; });
            stop_words_.insert(hash);
        }
    }

    void operator()(std::string_view text, double* facts) const {
        std::fill(facts, facts + FACT_COUNT, 0.0);
        std::vector<std::pair<uint64_t, uint32_t>> lines;
        for (size_t from = 0; from < text.size();) {
            const size_t stop = std::min(text.find('\n', from), text.size());
            line(text.substr(from, stop - from), facts, lines);
            from = stop + 1;
        }
        std::sort(lines.begin(), lines.end());
        for (size_t at = 1; at < lines.size(); ++at)
            if (lines[at].first == lines[at - 1].first) facts[repeated_line_characters] += lines[at].second;
        count_tokens(text, facts);
    }

  private:
    void line(std::string_view text, double* facts, std::vector<std::pair<uint64_t, uint32_t>>& lines) const {
        const char* at = text.data();
        const char* end = at + text.size();
        const char* url_end = at;
        uint32_t length = 0, columns = 0, run = 0, previous = 0, last = 0, before_last = 0, first = 0;
        uint64_t hash = 0;
        while (at < end) {
            if (at >= url_end && (*at == 'h' || *at == 'w')) url_end = std::max(url_end, url_at(at, end));
            if (at < url_end) ++facts[url_characters];
            const uint32_t code = next_code(at);
            ++facts[characters];
            count_class(code, facts);
            run = code == previous ? run + 1 : 1;
            previous = code;
            const Class kind = class_of(code);
            if (kind == SPACE) continue;
            ++length;
            columns += code < 0x1100 ? 1 : 2;
            if (kind <= DIGIT) facts[longest_run] = std::max(facts[longest_run], static_cast<double>(run));
            hash = mix(hash, code);
            if (!first) first = code;
            if (ends_sentence(code)) facts[sentence_ends] += !ends_sentence(last);
            if (!closes(code) || !ends_sentence(last)) before_last = last, last = code;
        }
        ++facts[characters], ++facts[spaces];  // the line's own end
        if (!length) return;
        lines.emplace_back(hash, length);
        ++facts[Fact::lines];
        facts[short_lines] += columns < SHORT_LINE;
        facts[bullet_lines] += is_bullet(first);
        facts[ellipsis_lines] += last == 0x2026 || (last == '.' && before_last == '.');
        facts[ended_lines] += ends_sentence(last) || last == 0x2026;
        facts[code_lines] += last == ';' || last == '{' || last == '}' || first == '}' ||
                             (last == ')' && before_last == '(');
        facts[longest_line] = std::max(facts[longest_line], static_cast<double>(length));
    }

    static void count_class(uint32_t code, double* facts) {
        switch (class_of(code)) {
            case HAN: ++facts[han]; break;
            case KANA: ++facts[kana]; break;
            case HANGUL: ++facts[hangul]; break;
            case LATIN: ++facts[latin]; break;
            case LETTER: ++facts[other_letters]; break;
            case DIGIT: ++facts[digits]; break;
            case SPACE: ++facts[spaces]; break;
            case PUNCTUATION: ++facts[punctuation]; break;
            default: ++facts[symbols];
        }
        if (code >= 'A' && code <= 'Z') ++facts[uppercase];
        if (code == '[' || code == ']' || code == '(' || code == ')' || code == 0xFF08 || code == 0xFF09 ||
            code == 0x3010 || code == 0x3011)
            ++facts[brackets];
        if (code == '{' || code == '}') ++facts[braces];
        if (code == 0xFFFD) ++facts[replacement];
    }

    static const char* url_at(const char* at, const char* end) {
        const std::string_view rest(at, static_cast<size_t>(end - at));
        if (rest.compare(0, 7, "http://") && rest.compare(0, 8, "https://") && rest.compare(0, 4, "www.")) return at;
        while (at < end && *at > ' ' && *at != '"' && *at != '>' && *at != ')') ++at;  // a char above 0x7F is negative here
        return at;
    }

    void count_tokens(std::string_view text, double* facts) const {
        std::vector<uint64_t> all;
        for_tokens(text, false, [&](uint64_t hash, Class kind) {
            all.push_back(hash);
            if (kind == LATIN || kind == LETTER) ++facts[words];
            facts[stop_words] += stop_words_.count(hash);
        });
        facts[word_characters] = facts[latin] + facts[other_letters];
        facts[tokens] = static_cast<double>(all.size());
        if (all.empty()) return;
        std::vector<uint64_t> grams;
        for (size_t at = GRAM; at <= all.size(); ++at) {
            uint64_t hash = 3;
            for (size_t k = at - GRAM; k < at; ++k) hash = mix(hash, all[k]);
            grams.push_back(hash);
        }
        if (!grams.empty()) facts[repeated_grams] = 1 - distinct(grams) / static_cast<double>(grams.size());
        std::vector<uint64_t> pairs;
        for (size_t at = 1; at < all.size(); ++at) pairs.push_back(mix(all[at - 1], all[at]));
        std::sort(pairs.begin(), pairs.end());
        size_t run = 0, most = 0;
        for (size_t at = 0; at < pairs.size(); ++at) {
            run = at && pairs[at] == pairs[at - 1] ? run + 1 : 1;
            most = std::max(most, run);
        }
        facts[top_pair] = 2.0 * static_cast<double>(most) / static_cast<double>(all.size());
        facts[distinct_tokens] = distinct(all);
    }

    static double distinct(std::vector<uint64_t>& values) {
        std::sort(values.begin(), values.end());
        return static_cast<double>(std::unique(values.begin(), values.end()) - values.begin());
    }

    std::unordered_set<uint64_t> stop_words_;
};

}  // namespace ziya
