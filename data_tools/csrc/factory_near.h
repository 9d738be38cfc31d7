// Finding a page that is like another: signatures, and an index of pages in eight bands.
#pragma once

#include <memory>

#include "factory_duplicates.h"

namespace ziya {

constexpr int BANDS = 8;

// simhash: 128 SimHash bits, then 128 one-bit minima; its bands are stretches of the SimHash bits.
// minhash: 256 one-bit minima; a band is two whole minima.
enum class Method : uint64_t { SIMHASH, MINHASH };

struct Signature {
    uint64_t bits[4];
    uint16_t keys[BANDS];  // the bucket of each band
    uint64_t tokens;
};
constexpr size_t WORDS = sizeof(Signature) / 8;

// A place that no pair fell into takes what another one holds, drawn by its own number, so the copy of a page draws the
// same (Shrivastava 2017).
inline void fill(uint64_t* minima, uint64_t count) {
    uint64_t full = 0;
    bool empty[256];
    for (uint64_t at = 0; at < count; ++at) full += !(empty[at] = minima[at] == UINT64_MAX);
    if (!full || full == count) return;
    for (uint64_t at = 0; at < count; ++at)
        for (uint64_t attempt = 0; minima[at] == UINT64_MAX; ++attempt) {
            const uint64_t from = mix(at + 1, attempt) & (count - 1);
            if (!empty[from]) minima[at] = minima[from];
        }
}

// MinHash over pairs of neighbouring tokens with one hash a pair (Li, Owen and Zhang 2012): its first bits choose one of
// `count` places, and each place keeps its smallest. Of each minimum one bit is kept (Li and Konig 2010).
inline void minima_of(const std::vector<uint64_t>& tokens, uint64_t count, uint64_t* bits, uint16_t* keys) {
    uint64_t minima[256], slots[2 * BANDS];
    std::fill(minima, minima + count, UINT64_MAX);
    const int shift = 64 - __builtin_ctzll(count), width = __builtin_ctzll(count);
    for (size_t at = 1; at < tokens.size(); ++at) {
        const uint64_t pair = mix(tokens[at - 1], tokens[at]);
        uint64_t& place = minima[pair >> shift];
        place = std::min(place, pair << width);
    }
    if (keys) {  // from wider places, or short pages would leave most of them empty
        const uint64_t each = count / (2 * BANDS);
        for (int slot = 0; slot < 2 * BANDS; ++slot)
            slots[slot] = *std::min_element(minima + slot * each, minima + (slot + 1) * each);
        fill(slots, 2 * BANDS);
        for (int band = 0; band < BANDS; ++band) keys[band] = mix(slots[2 * band], slots[2 * band + 1]) >> 48;
    }
    fill(minima, count);
    for (uint64_t at = 0; at < count; ++at) bits[at / 64] |= (mix(at, minima[at]) & 1) << (at % 64);
}

// 128 SimHash bits (Charikar 2002) over single characters and words.
inline void simhash_of(std::vector<uint64_t> tokens, uint64_t* bits) {
    std::sort(tokens.begin(), tokens.end());
    int32_t votes[128] = {};
    for (size_t at = 0; at < tokens.size();) {
        size_t next = at;
        while (next < tokens.size() && tokens[next] == tokens[at]) ++next;
        // A word's weight grows with the logarithm of its count, or a handful of particles would decide every bit.
        const int32_t weight = 64 - __builtin_clzll(next - at);
        const uint64_t halves[2] = {tokens[at], mix(7, tokens[at])};
        for (int half = 0; half < 2; ++half)
            for (int bit = 0; bit < 64; ++bit) votes[half * 64 + bit] += (halves[half] >> bit & 1) ? weight : -weight;
        at = next;
    }
    for (int bit = 0; bit < 128; ++bit) bits[bit / 64] |= static_cast<uint64_t>(votes[bit] > 0) << (bit % 64);
}

inline Signature signature_of(std::string_view text, Method method) {
    std::vector<uint64_t> tokens;
    for_tokens(text, false, [&](uint64_t hash, Class) { tokens.push_back(hash); });
    Signature page{};
    page.tokens = tokens.size();
    if (method == Method::MINHASH) {
        minima_of(tokens, 256, page.bits, page.keys);
    } else {
        minima_of(tokens, 128, page.bits + 2, nullptr);
        simhash_of(std::move(tokens), page.bits);
        std::memcpy(page.keys, page.bits, sizeof page.keys);  // eight bands of 16 bits
    }
    return page;
}

inline int hamming(const uint64_t* a, const uint64_t* b, int words) {
    int differ = 0;
    for (int word = 0; word < words; ++word) differ += __builtin_popcountll(a[word] ^ b[word]);
    return differ;
}

// One bit in two agrees by chance.
inline double jaccard(const uint64_t* a, const uint64_t* b, Method method) {
    const int from = method == Method::MINHASH ? 0 : 2;
    return std::max(0.0, 1 - 2.0 * hamming(a + from, b + from, 4 - from) / (64 * (4 - from)));
}

struct Match {
    int64_t page = -1;
    int distance = 0;  // of 128 SimHash bits; 0 for minhash
    double jaccard = 0;
};

// 64 bytes a page, one line of the processor's cache, and 2 MB of heads. A bucket is a chain of pages, the newest first,
// and at most LONGEST of them are looked at: what very many pages share says nothing, and a look-up stays bounded.
// simhash probes each band as it is and with each one of its bits flipped: of pages at distance 14 it misses 7 in 1,000,
// at 18 45, at 24 203. minhash probes it as it is: with Jaccard j it misses (1 - j^2)^8, 46 in 1,000 for 15 % of edits.
class NearIndex {
  public:
    explicit NearIndex(Method method) : method_(method), heads_(BANDS << 16, -1) {}
    NearIndex(NearIndex&&) = default;

    Match find(const Signature& page, int distance, double least) const {
        Match best;
        const int flips = method_ == Method::SIMHASH ? 16 : 0;
        for (int flip = -1; flip < flips; ++flip) {
            int32_t at[BANDS];
            for (int band = 0; band < BANDS; ++band) {
                const uint32_t key = page.keys[band] ^ (flip < 0 ? 0u : 1u << flip);
                at[band] = heads_[static_cast<size_t>(band) << 16 | key];
                if (at[band] >= 0) __builtin_prefetch(&entry(at[band]));
            }
            // All chains in step: while one waits for memory the others go on.
            bool more = true;
            for (int step = 0; more && step < LONGEST; ++step) {
                more = false;
                for (int band = 0; band < BANDS; ++band) {
                    if (at[band] < 0) continue;
                    const Entry& other = entry(at[band]);
                    consider(page, other, at[band], distance, least, best);
                    at[band] = other.next[band];
                    if (at[band] >= 0) __builtin_prefetch(&entry(at[band])), more = true;
                }
            }
        }
        return best;
    }

    void add(const Signature& page) {
        if (size_ >= INT32_MAX) throw std::length_error("an index holds at most 2^31 pages; split it by source");
        if (size_ % BLOCK == 0) blocks_.push_back(std::make_unique<Entry[]>(BLOCK));
        const auto at = static_cast<int32_t>(size_++);
        Entry& entry = blocks_.back()[at % BLOCK];
        std::memcpy(entry.bits, page.bits, sizeof entry.bits);
        for (int band = 0; band < BANDS; ++band) {
            int32_t& head = heads_[static_cast<size_t>(band) << 16 | page.keys[band]];
            entry.next[band] = head;
            head = at;
        }
    }
    size_t size() const { return size_; }
    Method method() const { return method_; }
    size_t bytes() const { return blocks_.size() * BLOCK * sizeof(Entry) + heads_.size() * sizeof heads_[0]; }

    void save(const std::string& path) const {
        File file(path, "wb");
        const uint64_t numbers[] = {static_cast<uint64_t>(method_), size_};
        file.write(MAGIC_NEAR, 8), file.write(numbers, sizeof numbers);
        file.write(heads_.data(), heads_.size() * sizeof heads_[0]);
        for (size_t at = 0; at < size_; at += BLOCK)
            file.write(blocks_[at / BLOCK].get(), std::min(BLOCK, size_ - at) * sizeof(Entry));
        file.close();
    }
    static NearIndex load(const std::string& path) {
        File file(path, "rb");
        uint64_t numbers[2];
        file.expect(MAGIC_NEAR), file.read(numbers, sizeof numbers);
        NearIndex index(static_cast<Method>(numbers[0]));
        file.read(index.heads_.data(), index.heads_.size() * sizeof index.heads_[0]);
        bool whole = numbers[0] <= 1 && numbers[1] <= INT32_MAX;
        for (const int32_t head : index.heads_) whole = whole && head >= -1 && head < static_cast<int64_t>(numbers[1]);
        for (size_t at = 0; whole && at < numbers[1]; at += BLOCK) {
            const size_t count = std::min(BLOCK, static_cast<size_t>(numbers[1]) - at);
            index.blocks_.push_back(std::make_unique<Entry[]>(BLOCK));
            file.read(index.blocks_.back().get(), count * sizeof(Entry));
            for (size_t row = 0; row < count; ++row)
                for (const int32_t next : index.blocks_.back()[row].next)  // a chain runs from newer to older pages
                    whole = whole && next >= -1 && next < static_cast<int64_t>(at + row);
        }
        if (!whole) throw std::invalid_argument(path + " is damaged; build the index again");
        index.size_ = numbers[1];
        return index;
    }

  private:
    struct alignas(64) Entry {
        uint64_t bits[4];
        int32_t next[BANDS];
    };
    static_assert(sizeof(Entry) == 64);
    static constexpr int LONGEST = 256;
    static constexpr size_t BLOCK = 1 << 12;
    static constexpr char MAGIC_NEAR[8] = {'Z', 'I', 'Y', 'A', 'N', 'E', '2', 0};

    const Entry& entry(int32_t at) const { return blocks_[static_cast<size_t>(at) / BLOCK][at % BLOCK]; }
    void consider(const Signature& page, const Entry& other, int32_t at, int most, double least, Match& best) const {
        const int apart = method_ == Method::SIMHASH ? hamming(page.bits, other.bits, 2) : 0;
        if (apart > most) return;
        const double alike = jaccard(page.bits, other.bits, method_);
        if (alike < least || (best.page >= 0 && (alike < best.jaccard || (alike == best.jaccard && at >= best.page)))) return;
        best = {at, apart, alike};
    }

    Method method_;
    size_t size_ = 0;
    std::vector<int32_t> heads_;
    std::vector<std::unique_ptr<Entry[]>> blocks_;
};

}  // namespace ziya
