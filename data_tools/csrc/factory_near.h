// Finding a page that is like another: signatures, and an index of pages in eight bands that may be cut in parts.
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

// Best of two matches: the one more alike, the older page of equals.
inline void better(Match& best, const Match& other) {
    if (other.page < 0) return;
    if (best.page < 0 || other.jaccard > best.jaccard || (other.jaccard == best.jaccard && other.page < best.page))
        best = other;
}

// The pages part, part + parts, part + 2 parts ... of an index: 60 bytes each, and 2 MB of heads. A bucket is a chain of
// pages, the newest first. simhash probes each band as it is and with each one of its bits flipped: of pages at distance
// 14 it misses 7 in 1,000, at 18 45, at 24 203. minhash probes it as it is: with Jaccard j it misses (1 - j^2)^8, 46 in
// 1,000 for 15 % of edits.
class NearPages {
  public:
    NearPages(Method method, uint64_t part, uint64_t parts)
        : method_(method), part_(part), parts_(parts), heads_(BANDS << 16, NONE) {}

    Match find(const Signature& page, int distance, double least) const {
        Match best;
        const int flips = method_ == Method::SIMHASH ? 16 : 0;
        for (int flip = -1; flip < flips; ++flip) {
            uint32_t at[BANDS];
            for (int band = 0; band < BANDS; ++band) {
                const uint32_t key = page.keys[band] ^ (flip < 0 ? 0u : 1u << flip);
                at[band] = heads_[static_cast<size_t>(band) << 16 | key];
                if (at[band] != NONE) fetch(at[band]);
            }
            // All chains in step: while one waits for memory the others go on.
            for (bool more = true; more;) {
                more = false;
                for (int band = 0; band < BANDS; ++band) {
                    if (at[band] == NONE) continue;
                    const Entry& other = entry(at[band]);
                    consider(page, other, at[band], distance, least, best);
                    at[band] = other.next(band);
                    if (at[band] != NONE) fetch(at[band]), more = true;
                }
            }
        }
        return best;
    }

    // Page `number`, if it is one of these; bit b of `open` says whether its bucket of band b takes it.
    void add(const Signature& page, uint64_t number, uint8_t open) {
        if (number % parts_ != part_) return;
        if (size_ >= NONE) throw std::length_error("an index holds 2^28 pages a part; raise deduplicate.partitions");
        if (size_ % BLOCK == 0) blocks_.push_back(std::make_unique<Entry[]>(BLOCK));
        const auto at = static_cast<uint32_t>(size_++);
        Entry& entry = blocks_.back()[at % BLOCK];
        std::memcpy(entry.bits, page.bits, sizeof entry.bits);
        for (int band = 0; band < BANDS; ++band) {
            uint32_t& head = heads_[static_cast<size_t>(band) << 16 | page.keys[band]];
            entry.set(band, open >> band & 1 ? head : NONE);
            if (open >> band & 1) head = at;
        }
    }
    size_t bytes() const { return blocks_.size() * BLOCK * sizeof(Entry) + heads_.size() * sizeof heads_[0]; }

  private:
    static constexpr uint32_t NONE = (1u << 28) - 1;  // no page: a link has 28 bits
    static constexpr size_t BLOCK = 1 << 12;

    struct Entry {
        uint32_t bits[8];
        uint8_t low[BANDS][3];
        uint32_t high;  // four bits a band

        uint32_t next(int band) const {
            return low[band][0] | low[band][1] << 8 | low[band][2] << 16 | (high >> 4 * band & 15u) << 24;
        }
        void set(int band, uint32_t at) {
            low[band][0] = at & 255, low[band][1] = at >> 8 & 255, low[band][2] = at >> 16 & 255;
            high = (high & ~(15u << 4 * band)) | (at >> 24) << 4 * band;
        }
    };
    static_assert(sizeof(Entry) == 60);

    void fetch(uint32_t at) const {  // most entries lie across two lines of the cache
        const char* start = reinterpret_cast<const char*>(&entry(at));
        __builtin_prefetch(start), __builtin_prefetch(start + sizeof(Entry) - 1);
    }
    const Entry& entry(uint32_t at) const { return blocks_[at / BLOCK][at % BLOCK]; }
    void consider(const Signature& page, const Entry& other, uint32_t at, int most, double least, Match& best) const {
        uint64_t bits[4];
        std::memcpy(bits, other.bits, sizeof bits);
        const int apart = method_ == Method::SIMHASH ? hamming(page.bits, bits, 2) : 0;
        if (apart > most) return;
        const double alike = jaccard(page.bits, bits, method_);
        if (alike >= least) better(best, {static_cast<int64_t>(at * parts_ + part_), apart, alike});
    }

    Method method_;
    uint64_t part_, parts_;
    size_t size_ = 0;
    std::vector<uint32_t> heads_;
    std::vector<std::unique_ptr<Entry[]>> blocks_;
};

// What decides in order which pages an index takes, whatever parts it is cut into. A bucket takes its first
// BUCKET_PAGES: what very many share says nothing, and a look-up stays bounded.
class NearOrder {
  public:
    explicit NearOrder(Method method) : method_(method), counts_(BANDS << 16, 0) {}

    // The bands whose bucket takes the next page, and one more page in them.
    uint8_t admit(const Signature& page) {
        uint8_t open = 0;
        for (int band = 0; band < BANDS; ++band) {
            uint8_t& count = counts_[static_cast<size_t>(band) << 16 | page.keys[band]];
            if (count < BUCKET_PAGES) ++count, open |= 1 << band;
        }
        ++size_;
        return open;
    }

    // `pages` in order, with the match of each one among the pages before this batch; one that is like none of those and
    // like none taken before it in the batch is taken: its match stays empty, and `open` tells its bands.
    void resolve(const Signature* pages, size_t count, Match* matches, uint8_t* open, int distance, double least) {
        NearPages batch(method_, 0, 1);
        std::vector<uint64_t> numbers;
        for (size_t at = 0; at < count; ++at) {
            Match match = batch.find(pages[at], distance, least);
            if (match.page >= 0) match.page = numbers[match.page];
            better(matches[at], match);
            open[at] = 0;
            if (matches[at].page >= 0) continue;
            numbers.push_back(size_);
            open[at] = admit(pages[at]);
            batch.add(pages[at], numbers.size() - 1, open[at]);
        }
    }
    uint64_t size() const { return size_; }
    Method method() const { return method_; }
    size_t bytes() const { return counts_.size(); }

  private:
    static constexpr uint8_t BUCKET_PAGES = 255;
    Method method_;
    uint64_t size_ = 0;
    std::vector<uint8_t> counts_;
};

}  // namespace ziya
