// Megatron: the order in which megatron-core's GPT dataset reads documents, to the bit.
//
// NumPy's legacy generator is MT19937 and its shuffle is Fisher-Yates from the end, each place drawn by masking
// random bits and rejecting what is too large; both are frozen by NumPy's compatibility policy (NEP 19).
#pragma once

#include <array>
#include <numeric>

#include "corpus.h"

namespace ziya {

// MT19937 (Matsumoto & Nishimura 1998) with NumPy's legacy seeding, which is std::mt19937's too; that one keeps its 32
// bits in words of 64 and makes numbers one at a time, where this one makes 624 in loops that the compiler widens.
class Generator {
public:
    explicit Generator(uint32_t seed) {
        state_[0] = seed;
        for (uint32_t k = 1; k < kWords; ++k) state_[k] = 1812433253u * (state_[k - 1] ^ state_[k - 1] >> 30) + k;
    }

    uint32_t operator()() {
        if (at_ == kWords) refill();
        return made_[at_++];
    }

private:
    static constexpr uint32_t kWords = 624, kAhead = 397;

    static uint32_t twisted(uint32_t high, uint32_t low) {
        const uint32_t both = (high & 0x80000000u) | (low & 0x7fffffffu);
        return both >> 1 ^ (-(low & 1u) & 0x9908b0dfu);
    }

    void refill() {
        uint32_t* s = state_.data();
        for (uint32_t k = 0; k < kWords - kAhead; ++k) s[k] = s[k + kAhead] ^ twisted(s[k], s[k + 1]);
        for (uint32_t k = kWords - kAhead; k < kWords - 1; ++k)
            s[k] = s[k - (kWords - kAhead)] ^ twisted(s[k], s[k + 1]);
        s[kWords - 1] = s[kAhead - 1] ^ twisted(s[kWords - 1], s[0]);
        for (uint32_t k = 0; k < kWords; ++k) {
            uint32_t y = s[k];
            y ^= y >> 11;
            y ^= y << 7 & 0x9d2c5680u;
            y ^= y << 15 & 0xefc60000u;
            made_[k] = y ^ y >> 18;
        }
        at_ = 0;
    }

    std::array<uint32_t, kWords> state_, made_;
    uint32_t at_ = kWords;
};

// numpy.random.RandomState.shuffle of fewer than 2^32 elements. The places are drawn in batches, so that the
// memory they point at is on its way before it is needed: five times as fast on an array beyond the cache.
template <class T>
inline void numpy_shuffle(T* values, int64_t count, Generator& generator) {
    constexpr int64_t kBatch = 64;
    uint32_t places[kBatch + 1];
    uint32_t mask = 0;
    while (static_cast<int64_t>(mask) < count - 1) mask = mask * 2 + 1;
    for (int64_t last = count - 1; last > 0;) {
        while (mask / 2 >= last) mask /= 2;
        const int64_t drawn = std::min<int64_t>(kBatch, last - mask / 2);  // the mask stays the same
        for (int64_t k = 0; k < drawn;) {
            const uint32_t place = generator() & mask;
            places[k] = place;
            k += place <= static_cast<uint64_t>(last - k);  // a rejected place is overwritten, without a branch
        }
        for (int64_t k = 0; k < drawn; ++k) __builtin_prefetch(values + places[k], 1);
        for (int64_t k = 0; k < drawn; ++k) std::swap(values[last - k], values[places[k]]);
        last -= drawn;
    }
}

// `epochs` times all documents, shuffled together; with `separate_last` the last epoch by itself behind them.
inline std::vector<int32_t> document_index(int64_t documents, int64_t epochs, bool separate_last,
                                           Generator& generator) {
    std::vector<int32_t> index(documents * epochs);
    for (int64_t epoch = 0; epoch < epochs; ++epoch)
        std::iota(index.data() + epoch * documents, index.data() + (epoch + 1) * documents, 0);
    const int64_t together = separate_last ? documents * (epochs - 1) : documents * epochs;
    numpy_shuffle(index.data(), together, generator);
    numpy_shuffle(index.data() + together, index.size() - together, generator);
    return index;
}

// (place in `order`, offset in that document) of each sample's first token, and of the last sample's end:
// [samples + 1, 2]. Sample k starts at token k * length.
template <class T>
inline std::vector<T> listed_sample_index(const Corpus& corpus, const int32_t* order, int64_t order_count,
                                          int64_t samples, int64_t length) {
    constexpr int64_t kAhead = 16;
    std::vector<int32_t> lengths(corpus.documents());
    for (int64_t d = 0; d < corpus.documents(); ++d) lengths[d] = static_cast<int32_t>(corpus.length(d));
    std::vector<T> index{0, 0};  // even where the first document is empty
    index.reserve(2 * (samples + 1));
    int64_t next = length, begin = 0;
    for (int64_t rank = 0; rank < order_count && static_cast<int64_t>(index.size()) < 2 * (samples + 1); ++rank) {
        if (rank + kAhead < order_count) __builtin_prefetch(&lengths[order[rank + kAhead]]);
        const int64_t end = begin + lengths[order[rank]];
        for (; next < end && static_cast<int64_t>(index.size()) < 2 * (samples + 1); next += length) {
            index.push_back(static_cast<T>(rank));
            index.push_back(static_cast<T>(next - begin));
        }
        begin = end;
    }
    return index;
}

// Samples [0, together) shuffled, then those from there on by themselves.
inline std::vector<uint32_t> shuffle_index(int64_t samples, int64_t together, Generator& generator) {
    std::vector<uint32_t> index(samples);
    for (int64_t i = 0; i < samples; ++i) index[i] = static_cast<uint32_t>(i);
    numpy_shuffle(index.data(), together, generator);
    numpy_shuffle(index.data() + together, samples - together, generator);
    return index;
}

// The pieces that fill `count` tokens from (rank, offset) on in the documents that `order` lists.
inline std::vector<Piece> listed_pieces(const Corpus& corpus, const int32_t* order, int64_t rank, int64_t offset,
                                        int64_t count) {
    std::vector<Piece> pieces;
    for (; count > 0; ++rank, offset = 0) {
        const int64_t taken = std::min(corpus.length(order[rank]) - offset, count);
        if (taken > 0) pieces.push_back({order[rank], offset, taken});
        count -= taken;
    }
    return pieces;
}

}  // namespace ziya
