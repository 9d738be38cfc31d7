// Finding a page again: a Bloom filter for exact repeats, a banded SimHash index for near ones.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <stdexcept>
#include <string>

#include "factory_text.h"

namespace ziya {

class File {  // closes itself; every read and write is checked
  public:
    File(const std::string& path, const char* mode) : path_(path), file_(std::fopen(path.c_str(), mode)) {
        if (!file_) throw FileError(path + " cannot be opened");
    }
    ~File() { if (file_) std::fclose(file_); }
    File(const File&) = delete;
    void write(const void* data, size_t size) {
        if (size && std::fwrite(data, 1, size, file_) != size) throw FileError(path_ + " cannot be written");
    }
    void read(void* data, size_t size) {
        if (size && std::fread(data, 1, size, file_) != size)
            throw std::invalid_argument(path_ + " is cut short; build the index again");
    }
    void expect(const char (&magic)[8]) {
        char found[8];
        read(found, 8);
        if (std::memcmp(found, magic, 8)) throw std::invalid_argument(path_ + " is not the index file that was expected");
    }
    void close() {
        const int failed = std::fclose(file_);
        file_ = nullptr;
        if (failed) throw FileError(path_ + " cannot be written");
    }

  private:
    std::string path_;
    std::FILE* file_;
};

// Bits m = -n ln p / ln(2)^2 and k = m/n ln 2 probes for n keys at a false-positive rate p (Bloom 1970).
class Bloom {
  public:
    Bloom(uint64_t capacity, double rate) {
        if (!capacity || !(rate > 0 && rate < 1))
            throw std::invalid_argument("a Bloom filter needs capacity >= 1 and a rate within 0 and 1");
        const double bits = -static_cast<double>(capacity) * std::log(rate) / (std::log(2.0) * std::log(2.0));
        words_.assign(static_cast<size_t>(bits / 64) + 1, 0);
        probes_ = static_cast<uint64_t>(std::max(1.0, std::round(-std::log2(rate))));
    }

    bool test_and_add(uint64_t key) { return visit(key, true); }
    bool test(uint64_t key) { return visit(key, false); }
    uint64_t added() const { return added_; }
    size_t bytes() const { return words_.size() * 8; }

    void save(const std::string& path) const {
        File file(path, "wb");
        const uint64_t numbers[] = {probes_, added_, words_.size()};
        file.write(MAGIC_BLOOM, 8), file.write(numbers, sizeof numbers), file.write(words_.data(), bytes());
        file.close();
    }
    static Bloom load(const std::string& path) {
        File file(path, "rb");
        uint64_t numbers[3];
        file.expect(MAGIC_BLOOM), file.read(numbers, sizeof numbers);
        Bloom bloom(1, 0.5);
        bloom.probes_ = numbers[0], bloom.added_ = numbers[1];
        bloom.words_.resize(numbers[2]);
        file.read(bloom.words_.data(), bloom.bytes());
        return bloom;
    }

  private:
    bool visit(uint64_t key, bool add) {
        // Two hashes make all probes (Kirsch and Mitzenmacher 2006); the product's high half maps them to the range.
        uint64_t hash = mix(21, key);
        const uint64_t step = mix(22, key) | 1;
        bool seen = true;
        for (uint64_t probe = 0; probe < probes_; ++probe, hash += step) {
            const uint64_t bit = static_cast<uint64_t>((static_cast<unsigned __int128>(hash) * (words_.size() * 64)) >> 64);
            const uint64_t flag = 1ull << (bit & 63);
            seen = seen && (words_[bit >> 6] & flag);
            if (add) words_[bit >> 6] |= flag;
        }
        if (add && !seen) ++added_;
        return seen;
    }
    static constexpr char MAGIC_BLOOM[8] = {'Z', 'I', 'Y', 'A', 'B', 'F', '1', 0};
    std::vector<uint64_t> words_;
    uint64_t probes_ = 1, added_ = 0;
};

// 128 SimHash bits (Charikar 2002) over single characters and words, and 32 four-bit minima over pairs of them for a look
// at the Jaccard similarity (b-bit MinHash, Li and Konig 2010): 32 bytes a page, and 32 more in the bands below.
struct Signature {
    uint64_t bits[2];
    uint64_t minima[2];
};

inline Signature signature_of(std::string_view text, uint32_t& tokens) {
    std::vector<uint64_t> all;
    for_tokens(text, false, [&](uint64_t hash, Class) { all.push_back(hash); });
    tokens = static_cast<uint32_t>(all.size());
    uint32_t minima[32];
    std::fill(minima, minima + 32, UINT32_MAX);
    for (size_t at = 1; at < all.size(); ++at) {
        const uint64_t pair = mix(all[at - 1], all[at]);
        const uint32_t low = static_cast<uint32_t>(pair), high = static_cast<uint32_t>(pair >> 32) | 1;
        for (uint32_t k = 0; k < 32; ++k) {
            const uint32_t value = (low ^ (low >> 15)) * (high + 2 * k * 0x9E3779B1u);
            minima[k] = std::min(minima[k], value);
        }
    }
    Signature signature{};
    for (int k = 0; k < 32; ++k) {
        const uint64_t four_bits = (minima[k] * 0x9E3779B1u) >> 28;
        signature.minima[k / 16] |= four_bits << (4 * (k % 16));
    }
    std::sort(all.begin(), all.end());
    int32_t votes[128] = {};
    for (size_t at = 0; at < all.size();) {
        size_t next = at;
        while (next < all.size() && all[next] == all[at]) ++next;
        // A word's weight grows with the logarithm of its count, or a handful of particles would decide every bit.
        const int32_t weight = 64 - __builtin_clzll(next - at);
        const uint64_t halves[2] = {all[at], mix(7, all[at])};
        for (int half = 0; half < 2; ++half)
            for (int bit = 0; bit < 64; ++bit) votes[half * 64 + bit] += (halves[half] >> bit & 1) ? weight : -weight;
        at = next;
    }
    for (int bit = 0; bit < 128; ++bit) signature.bits[bit / 64] |= static_cast<uint64_t>(votes[bit] > 0) << (bit % 64);
    return signature;
}

inline int hamming(const Signature& a, const Signature& b) {
    return __builtin_popcountll(a.bits[0] ^ b.bits[0]) + __builtin_popcountll(a.bits[1] ^ b.bits[1]);
}

inline double jaccard(const Signature& a, const Signature& b) {
    int same = 0;
    for (int half = 0; half < 2; ++half) {
        uint64_t differs = a.minima[half] ^ b.minima[half];
        differs |= differs >> 2, differs |= differs >> 1;
        same += 16 - __builtin_popcountll(differs & 0x1111111111111111ull);
    }
    return std::max(0.0, (same / 32.0 - 1 / 16.0) / (1 - 1 / 16.0));  // 1 in 16 minima agrees by chance
}

struct Match {
    int64_t page = -1;
    int distance = 0;
    double jaccard = 0;
};

// Eight bands of 16 bits; a look-up probes each band as it is and with each one of its bits flipped, so a page at
// distance 14 is missed 7 times in 1,000, at 18 45 times, at 24 203 times (few copies are so far). 64 bytes a page.
class NearIndex {
  public:
    NearIndex() : heads_(BANDS << 16, -1) {}

    Match find(const Signature& page, int distance, double least) const {
        Match best;
        for (int band = 0; band < BANDS; ++band) {
            const uint32_t key = key_of(page, band);
            for (int flip = -1; flip < 16; ++flip) {
                const uint32_t probe = flip < 0 ? key : key ^ (1u << flip);
                int32_t at = heads_[static_cast<size_t>(band) << 16 | probe];
                for (; at >= 0; at = next_[static_cast<size_t>(at) * BANDS + band]) {
                    const int apart = hamming(page, pages_[at]);
                    if (apart > distance || (best.page >= 0 && apart >= best.distance)) continue;
                    const double alike = jaccard(page, pages_[at]);
                    if (alike >= least) best = {at, apart, alike};
                }
            }
        }
        return best;
    }

    void add(const Signature& page) {
        if (pages_.size() >= INT32_MAX) throw std::length_error("an index holds at most 2^31 pages; split it by source");
        const auto at = static_cast<int32_t>(pages_.size());
        pages_.push_back(page);
        for (int band = 0; band < BANDS; ++band) {
            int32_t& head = heads_[static_cast<size_t>(band) << 16 | key_of(page, band)];
            next_.push_back(head);
            head = at;
        }
    }
    size_t size() const { return pages_.size(); }

    void save(const std::string& path) const {
        File file(path, "wb");
        const uint64_t count = pages_.size();
        file.write(MAGIC_NEAR, 8), file.write(&count, 8), file.write(pages_.data(), count * sizeof(Signature));
        file.close();
    }
    static NearIndex load(const std::string& path) {
        File file(path, "rb");
        uint64_t count;
        file.expect(MAGIC_NEAR), file.read(&count, 8);
        std::vector<Signature> pages(count);
        file.read(pages.data(), count * sizeof(Signature));
        NearIndex index;
        for (const Signature& page : pages) index.add(page);
        return index;
    }

  private:
    static constexpr int BANDS = 8;
    static constexpr char MAGIC_NEAR[8] = {'Z', 'I', 'Y', 'A', 'S', 'H', '1', 0};
    static uint32_t key_of(const Signature& page, int band) { return page.bits[band / 4] >> (16 * (band % 4)) & 0xFFFF; }
    std::vector<Signature> pages_;
    std::vector<int32_t> heads_, next_;
};

}  // namespace ziya
