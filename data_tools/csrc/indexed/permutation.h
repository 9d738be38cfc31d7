// Permutation: a keyed shuffle of [0, n) that needs no table.
//
// A Feistel network over the smallest power of two >= n, walked until it lands below n (Black & Rogaway 2002,
// "Ciphers with arbitrary finite domains"). It is part of the dataset's contract: the same key must give the
// same order for ever, so a change here needs a new SHUFFLE_VERSION in samples.py.
#pragma once

#include <array>
#include <cstdint>

namespace ziya {

constexpr uint64_t kGolden = 0x9e3779b97f4a7c15ULL;  // 2^64 / golden ratio, odd

// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
inline uint64_t scramble(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
    return x ^ (x >> 31);
}

enum Purpose : uint64_t { kDocuments = 0, kSamples = 1 };

class Permutation {
public:
    // key: of the source; one order per (key, epoch, purpose).
    Permutation(uint64_t key, uint64_t epoch, uint64_t purpose, uint64_t n) : n_(n) {
        // 64 slots at least: with fewer bits the rounds reach too few of the n! orders.
        int bits = 6;
        while ((uint64_t{1} << bits) < n) ++bits;
        low_bits_ = bits / 2;
        high_bits_ = bits - low_bits_;
        const uint64_t mixed = scramble(scramble(key + purpose * kGolden) + epoch * kGolden);
        for (size_t r = 0; r < keys_.size(); ++r) keys_[r] = scramble(mixed + (r + 1) * kGolden);
    }

    uint64_t operator()(uint64_t i) const {
        do i = once(i);
        while (i >= n_);
        return i;
    }

private:
    static uint64_t round(uint64_t half, uint64_t key, int bits) {
        uint64_t z = (half ^ key) * kGolden;
        z = (z ^ (z >> 32)) * 0xbf58476d1ce4e5b9ULL;
        return z >> (64 - bits);
    }

    uint64_t once(uint64_t i) const {
        uint64_t high = i >> low_bits_, low = i & ((uint64_t{1} << low_bits_) - 1);
        for (size_t r = 0; r < keys_.size(); r += 2) {
            high ^= round(low, keys_[r], high_bits_);
            low ^= round(high, keys_[r + 1], low_bits_);
        }
        return (high << low_bits_) | low;
    }

    uint64_t n_;
    int low_bits_, high_bits_;
    std::array<uint64_t, 6> keys_;
};

}  // namespace ziya
