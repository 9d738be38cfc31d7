// Hints that a line sells something, by kind (lists/hints.*): no one of them makes an advert, several kinds together do.
#pragma once

#include <algorithm>
#include <string>
#include <unordered_map>

#include "factory_text.h"

namespace ziya {

class Hints {
  public:
    // kinds: phrases of each, the last kind speaks against. In a phrase a number stands for any number, $ for any
    // currency, and ^ in front for the beginning of a clause.
    explicit Hints(const std::vector<std::vector<std::string>>& kinds) : kinds_(kinds.size()), first_(1 << 13) {
        for (size_t kind = 0; kind < kinds.size(); ++kind)
            for (const std::string& phrase : kinds[kind]) {
                const bool starts = !phrase.empty() && phrase[0] == '^';
                std::vector<Token> tokens;
                tokenize(std::string_view(phrase).substr(starts), tokens);
                std::vector<uint64_t> wanted;
                for (const Token& token : tokens) wanted.push_back(token.key);
                if (wanted.empty() || wanted == std::vector<uint64_t>{NUMBER})
                    throw std::invalid_argument("the hint '" + phrase + "' is in every text; write a word beside the number");
                first_[wanted[0] >> 51] = true;
                phrases_[wanted[0]].push_back({kind, starts, wanted});
            }
        for (auto& [key, same] : phrases_)  // the longest first: `free shipping` is one hint, not two
            std::stable_sort(same.begin(), same.end(), [](const Phrase& a, const Phrase& b) { return a.wanted.size() > b.wanted.size(); });
    }

    // How many different hints a line holds, at most two of a kind, less those that speak against.
    int32_t score(std::string_view line) const {
        Found seen;
        return score(line, seen);
    }

    // The numbers of the lines that score `least`, and have at most `reach` characters for each hint: thinly spread over a
    // long line hints say nothing. A line of at most `small` characters that ends no sentence needs one hint less.
    std::vector<size_t> lines(std::string_view text, double least, size_t reach, size_t small) const {
        const size_t longest = kinds_ ? 2 * (kinds_ - 1) * reach : 0;
        Found seen;
        return lines_that(text, [&](std::string_view line) {
            const size_t length = length_of(line);
            if (length > longest) return false;
            const int32_t found = score(line, seen);
            if (found <= 0 || length > reach * static_cast<size_t>(found)) return false;
            const bool brief = length <= small && !ends_with(line, {"。", ".", "；", ";"});
            return found >= least - brief;
        });
    }

  private:
    static constexpr uint64_t NUMBER = 21, LONG_NUMBER = 22, CURRENCY = 23;  // no token's hash is so small in practice
    static constexpr size_t TELEPHONE = 10;  // digits, with - ( ) + and spaces between them; a date has eight

    struct Token {
        uint64_t key;
        bool starts;  // a clause
    };
    struct Phrase {
        size_t kind;
        bool starts;
        std::vector<uint64_t> wanted;
    };

    // What one line's score is made of; kept from line to line for its memory.
    struct Found {
        std::vector<Token> tokens;
        std::vector<const Phrase*> first_two;  // of each kind, that differ
        std::vector<size_t> free;              // where the last hint of a kind ends
    };

    int32_t score(std::string_view line, Found& seen) const {
        auto& [tokens, found, free] = seen;
        tokenize(line, tokens);
        found.assign(2 * kinds_, nullptr), free.assign(kinds_, 0);
        int32_t sum = 0;
        for (size_t at = 0; at < tokens.size(); ++at) {
            if (!first_[tokens[at].key >> 51]) continue;
            const auto same = phrases_.find(tokens[at].key);
            if (same == phrases_.end()) continue;
            for (const Phrase& phrase : same->second) {
                const Phrase** mine = &found[2 * phrase.kind];
                if (at < free[phrase.kind] || !stands(phrase, tokens, at)) continue;
                free[phrase.kind] = at + phrase.wanted.size();
                if (mine[1] || mine[0] == &phrase) continue;
                mine[mine[0] != nullptr] = &phrase;
                sum += phrase.kind + 1 < kinds_ ? 1 : -1;
            }
        }
        return sum;
    }

    // Words and Chinese characters; a run of numbers, in digits or Chinese numerals, is one token.
    static void tokenize(std::string_view text, std::vector<Token>& tokens) {
        tokens.clear();
        bool starts = true;
        size_t digits = 0;  // of the number that the tokens end in
        const char* before = text.data();
        walk_tokens(text, true, [&](uint64_t hash, Class kind, const char* end) {
            const char* last = end - 1;
            while ((*last & 0xC0) == 0x80) --last;
            const uint32_t code = next_code(last);
            const char* since = before;
            before = end;
            if (kind == PUNCTUATION || kind == SYMBOL) {
                if (is_currency(code)) tokens.push_back({CURRENCY, starts}), starts = false;
                else starts = starts || !joins(code);
                if (code != '-' && code != '(' && code != ')' && code != '+') digits = 0;
                return;
            }
            if (kind == DIGIT || (kind == HAN && is_numeral(code))) {
                if (tokens.empty() || !is_number(tokens.back().key)) tokens.push_back({NUMBER, starts}), digits = 0;
                while (since < end) digits += class_of(next_code(since)) == DIGIT;
                tokens.back().key = digits >= TELEPHONE ? LONG_NUMBER : NUMBER;
            } else {
                tokens.push_back({hash, starts});
            }
            starts = false;
        });
    }

    static bool is_number(uint64_t key) { return key == NUMBER || key == LONG_NUMBER; }
    static bool is_currency(uint32_t code) {
        return code == '$' || code == 0xA2 || code == 0xA3 || code == 0xA5 || code == 0x20AC || code == 0xFFE5;
    }
    static bool joins(uint32_t code) {  // stands within a clause
        return code == '-' || code == '\'' || code == 0x2019 || code == '%' || code == '&' || code == '/';
    }
    static bool is_numeral(uint32_t code) {
        switch (code) {
            case 0x4E00: case 0x4E8C: case 0x4E09: case 0x56DB: case 0x4E94: case 0x516D: case 0x4E03: case 0x516B:
            case 0x4E5D: case 0x5341: case 0x767E: case 0x5343: case 0x4E07: case 0x4E24: case 0x96F6: case 0x3007:
                return true;
            default:
                return false;
        }
    }
    static bool stands(const Phrase& phrase, const std::vector<Token>& tokens, size_t at) {
        if (phrase.starts && !tokens[at].starts) return false;
        if (at + phrase.wanted.size() > tokens.size()) return false;
        for (size_t n = 0; n < phrase.wanted.size(); ++n)
            if (tokens[at + n].key != phrase.wanted[n]) return false;
        return true;
    }

    size_t kinds_;
    std::unordered_map<uint64_t, std::vector<Phrase>> phrases_;
    std::vector<char> first_;  // whether any phrase's first token begins with these 13 bits
};

}  // namespace ziya
