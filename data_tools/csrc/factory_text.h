// Text as the data factory sees it: code points, their classes, tokens and hashes. No Python in here.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <stdexcept>
#include <string_view>
#include <vector>

namespace ziya {

struct FileError : std::runtime_error {  // OSError in Python
    using std::runtime_error::runtime_error;
};

enum Class : uint8_t { SPACE, HAN, KANA, HANGUL, LATIN, LETTER, DIGIT, PUNCTUATION, SYMBOL, CONTROL };

struct Range {
    uint32_t first, last;
    Class kind;
};

// Later rows win. LETTER is the default: an alphabet that is not listed is still an alphabet.
constexpr Range RANGES[] = {
    {0x0000, 0x001F, CONTROL},  {0x0009, 0x000D, SPACE},       {0x0020, 0x0020, SPACE},
    {0x0021, 0x002F, PUNCTUATION}, {0x0030, 0x0039, DIGIT},    {0x003A, 0x0040, PUNCTUATION},
    {0x0041, 0x005A, LATIN},    {0x005B, 0x0060, PUNCTUATION}, {0x0061, 0x007A, LATIN},
    {0x007B, 0x007E, PUNCTUATION}, {0x0023, 0x0026, SYMBOL},   {0x002A, 0x002B, SYMBOL},
    {0x003C, 0x003E, SYMBOL},   {0x0040, 0x0040, SYMBOL},      {0x005E, 0x0060, SYMBOL},
    {0x005C, 0x005C, SYMBOL},   {0x007C, 0x007C, SYMBOL},      {0x007E, 0x007E, SYMBOL},
    {0x007F, 0x009F, CONTROL},  {0x00A0, 0x00A0, SPACE},       {0x00A1, 0x00BF, SYMBOL},
    {0x00AB, 0x00AB, PUNCTUATION}, {0x00BB, 0x00BB, PUNCTUATION}, {0x00B7, 0x00B7, PUNCTUATION},
    {0x00C0, 0x024F, LATIN},    {0x00D7, 0x00D7, SYMBOL},      {0x00F7, 0x00F7, SYMBOL},
    {0x1E00, 0x1EFF, LATIN},    {0x1100, 0x11FF, HANGUL},      {0x2000, 0x200A, SPACE},
    {0x200B, 0x200F, CONTROL},  {0x2010, 0x2027, PUNCTUATION}, {0x2028, 0x2029, SPACE},
    {0x202A, 0x202E, CONTROL},  {0x202F, 0x202F, SPACE},       {0x2030, 0x205E, PUNCTUATION},
    {0x2060, 0x206F, CONTROL},  {0x20A0, 0x2BFF, SYMBOL},      {0x2E80, 0x2FDF, HAN},
    {0x2E00, 0x2E7F, PUNCTUATION}, {0x3000, 0x3000, SPACE},    {0x3001, 0x303F, PUNCTUATION},
    {0x3005, 0x3007, HAN},      {0x3012, 0x3013, SYMBOL},      {0x3040, 0x30FF, KANA},
    {0x30FB, 0x30FB, PUNCTUATION}, {0x3130, 0x318F, HANGUL},   {0x31F0, 0x31FF, KANA},
    {0x3200, 0x33FF, SYMBOL},   {0x3400, 0x4DBF, HAN},         {0x4E00, 0x9FFF, HAN},
    {0xAC00, 0xD7AF, HANGUL},   {0xD800, 0xF8FF, CONTROL},     {0xF900, 0xFAFF, HAN},
    {0xFB00, 0xFB06, LATIN},    {0xFE00, 0xFE0F, CONTROL},     {0xFE10, 0xFE6F, PUNCTUATION},
    {0xFEFF, 0xFEFF, CONTROL},  {0xFF01, 0xFF0F, PUNCTUATION}, {0xFF10, 0xFF19, DIGIT},
    {0xFF1A, 0xFF20, PUNCTUATION}, {0xFF21, 0xFF3A, LATIN},    {0xFF3B, 0xFF40, PUNCTUATION},
    {0xFF41, 0xFF5A, LATIN},    {0xFF5B, 0xFF65, PUNCTUATION}, {0xFF66, 0xFF9F, KANA},
    {0xFFE0, 0xFFEF, SYMBOL},   {0xFFF0, 0xFFFF, CONTROL},
};

// Made when it is compiled, so that no look-up asks first whether it is there.
inline constexpr std::array<Class, 0x10000> BASIC_PLANE = [] {
    std::array<Class, 0x10000> kinds{};
    for (Class& kind : kinds) kind = LETTER;
    for (const Range& range : RANGES)
        for (uint32_t code = range.first; code <= range.last; ++code) kinds[code] = range.kind;
    return kinds;
}();

inline Class class_of(uint32_t code) {
    if (code < 0x10000) return BASIC_PLANE[code];
    if (code >= 0x20000 && code <= 0x3FFFF) return HAN;
    return code >= 0x1F000 && code <= 0x1FAFF ? SYMBOL : LETTER;
}

// Python hands over valid UTF-8, so the lead byte alone tells the length.
inline uint32_t next_code(const char*& at) {
    const auto* byte = reinterpret_cast<const unsigned char*>(at);
    if (byte[0] < 0x80) return at += 1, byte[0];
    if (byte[0] < 0xE0) return at += 2, (byte[0] & 0x1Fu) << 6 | (byte[1] & 0x3Fu);
    if (byte[0] < 0xF0) return at += 3, (byte[0] & 0x0Fu) << 12 | (byte[1] & 0x3Fu) << 6 | (byte[2] & 0x3Fu);
    return at += 4, (byte[0] & 0x07u) << 18 | (byte[1] & 0x3Fu) << 12 | (byte[2] & 0x3Fu) << 6 | (byte[3] & 0x3Fu);
}

// Case and width folded away: what differs only so is the same word.
inline uint32_t fold(uint32_t code) {
    if (code >= 0xFF01 && code <= 0xFF5E) code -= 0xFEE0;
    if (code >= 'A' && code <= 'Z') return code + 32;
    if (code < 0xC0) return code;
    if (code <= 0xDE && code != 0xD7) return code + 32;
    if ((code >= 0x391 && code <= 0x3A9) || (code >= 0x410 && code <= 0x42F)) return code + 32;
    return code;
}

// The finaliser of splitmix64 over a running value; 64 bits, so 10^9 keys meet by chance about 0.03 times.
inline uint64_t mix(uint64_t hash, uint64_t value) {
    uint64_t x = hash * 0x9E3779B97F4A7C15ull + value + 0xD1B54A32D192ED03ull;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
}

inline bool is_word(Class kind) { return kind == LATIN || kind == LETTER || kind == DIGIT || kind == HANGUL; }

// Calls take(hash, class, end) for every token: a Chinese or Japanese character, a word, or (when asked) a mark.
// So Chinese is counted in characters and English in words by one and the same walk.
template <class Take>
inline void walk_tokens(std::string_view text, bool marks, Take take) {
    const char* at = text.data();
    const char* end = at + text.size();
    uint64_t word = 0;
    Class first = SPACE;
    while (at < end) {
        const char* before = at;
        const uint32_t code = next_code(at);
        const Class kind = class_of(code);
        if (is_word(kind)) {
            if (!word) first = kind;
            word = mix(word, fold(code));
            continue;
        }
        if (code == '\'' && word && at < end && class_of(static_cast<unsigned char>(*at)) == LATIN) continue;  // don't
        if (word) take(word, first, before), word = 0;
        if (kind == HAN || kind == KANA) take(mix(1, code), kind, at);
        else if (marks && (kind == PUNCTUATION || kind == SYMBOL)) take(mix(2, fold(code)), kind, at);
    }
    if (word) take(word, first, end);
}

template <class Take>
inline void for_tokens(std::string_view text, bool marks, Take take) {
    walk_tokens(text, marks, [&](uint64_t hash, Class kind, const char*) { take(hash, kind); });
}

// The numbers of the lines for which goes(line) holds.
template <class Goes>
inline std::vector<size_t> lines_that(std::string_view text, Goes goes) {
    std::vector<size_t> found;
    for (size_t from = 0, number = 0; from < text.size(); ++number) {
        const size_t stop = std::min(text.find('\n', from), text.size());
        if (goes(text.substr(from, stop - from))) found.push_back(number);
        from = stop + 1;
    }
    return found;
}

// Characters of a UTF-8 text: bytes that go on with none.
inline size_t length_of(std::string_view text) {
    size_t length = 0;
    for (const char byte : text) length += (byte & 0xC0) != 0x80;
    return length;
}

inline bool ends_with(std::string_view text, std::initializer_list<std::string_view> ends) {
    return std::any_of(ends.begin(), ends.end(), [&](std::string_view end) {
        return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
    });
}

// A hash of the text with case, width, white space, punctuation, symbols and emoji folded away.
inline uint64_t content_hash(std::string_view text) {
    uint64_t hash = 0;
    const char* at = text.data();
    const char* end = at + text.size();
    while (at < end) {
        const uint32_t code = next_code(at);
        const Class kind = class_of(code);
        if (is_word(kind) || kind == HAN || kind == KANA) hash = mix(hash, fold(code));
    }
    return hash;
}

}  // namespace ziya
