// Permutation: a keyed shuffle of [0, n) that needs no table.
//
// A Feistel network over the smallest power of two >= n, walked until it lands below n (Black & Rogaway 2002,
// "Ciphers with arbitrary finite domains"). It is part of the dataset's contract: the same key must give the
// same order for ever, so a change here needs a new SHUFFLE_VERSION in samples.py.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "cpu.h"

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

    static constexpr int64_t kBatch = 256;

    uint64_t operator()(uint64_t i) const {
        do i = once(i);
        while (i >= n_);
        return i;
    }

    // What stands at places [first, first + count), at most kBatch of them: several times as fast as one by one.
    void fill(uint64_t first, int64_t count, uint64_t* out) const {
        for (int64_t k = 0; k < count; ++k) out[k] = first + k;
        each(out, count);
        // Those that have landed outside walk on, together again.
        uint64_t values[kBatch] = {};
        int64_t places[kBatch], outside = 0;
        for (int64_t k = 0; k < count; ++k) {
            values[outside] = out[k];
            places[outside] = k;
            outside += out[k] >= n_;
        }
        while (outside > 0) {
            each(values, (outside + 7) / 8 * 8);  // whole vectors; what is too much is never looked at
            int64_t left = 0;
            for (int64_t k = 0; k < outside; ++k) {
                const uint64_t value = values[k];
                const int64_t place = places[k];
                out[place] = value;
                values[left] = value;
                places[left] = place;
                left += value >= n_;
            }
            outside = left;
        }
    }

private:
    void each(uint64_t* values, int64_t count) const {
#ifdef ZIYA_X86
        if (cpu() == Cpu::wide) return each_wide(values, count);
#endif
        for (int64_t k = 0; k < count; ++k) values[k] = once(values[k]);
    }

#ifdef ZIYA_X86
    ZIYA_WIDE void each_wide(uint64_t* values, int64_t count) const {
        for (int64_t k = 0; k < count; ++k) values[k] = once(values[k]);
    }
#endif

    static ZIYA_INLINE uint64_t round(uint64_t half, uint64_t key, int bits) {
        uint64_t z = (half ^ key) * kGolden;
        z = (z ^ (z >> 32)) * 0xbf58476d1ce4e5b9ULL;
        return z >> (64 - bits);
    }

    ZIYA_INLINE uint64_t once(uint64_t i) const {
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
