// Lists of words and phrases, looked for in texts and in their lines.
#pragma once

#include <algorithm>
#include <string>
#include <unordered_map>

#include "factory_text.h"

namespace ziya {

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

    // The share of the tokens, numbers apart, that stand in listed phrases, the longest first; 0 for fewer than `least`.
    double covered(std::string_view text, size_t least) const {
        std::vector<uint64_t> tokens;
        for_tokens(text, false, [&](uint64_t hash, Class kind) { if (kind != DIGIT) tokens.push_back(hash); });
        size_t inside = 0, found = 0;
        for (size_t at = 0; at < tokens.size();) {
            size_t longest = 0;
            if (const auto candidates = phrases_.find(tokens[at]); candidates != phrases_.end())
                for (const auto& phrase : candidates->second)
                    if (at + phrase.size() <= tokens.size() && std::equal(phrase.begin(), phrase.end(), tokens.begin() + at))
                        longest = std::max(longest, phrase.size());
            inside += longest, found += longest > 0;
            at += std::max<size_t>(longest, 1);
        }
        return tokens.empty() || found < least ? 0 : static_cast<double>(inside) / static_cast<double>(tokens.size());
    }

    // The numbers of the lines of at most `longest` bytes that end no sentence and are covered to this share.
    std::vector<size_t> bars(std::string_view text, double share, size_t least, size_t longest) const {
        return lines_that(text, [&](std::string_view line) {
            while (!line.empty() && (line.back() == ' ' || line.back() == '\t')) line.remove_suffix(1);
            if (line.size() > longest || ends_with(line, {".", "!", "?", "。", "！", "？", "…"})) return false;
            return covered(line, least) >= share;
        });
    }

  private:
    std::unordered_map<uint64_t, std::vector<std::vector<uint64_t>>> phrases_;
};

}  // namespace ziya
