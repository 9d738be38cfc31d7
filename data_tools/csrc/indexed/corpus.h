// Corpus: the documents of one source, spread over one or more memory-mapped .bin/.idx pairs.
//
// Every array of an .idx starts at an odd place (34 bytes of header), so it is read with memcpy, never
// through a typed pointer.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "permutation.h"

namespace ziya {

template <class T>
inline T load(const char* base, int64_t index) {
    T value;
    std::memcpy(&value, base + index * sizeof(T), sizeof(T));
    return value;
}

// One .bin/.idx pair; see format.py for the layout.
struct File {
    const char *tokens, *lengths, *pointers, *documents;
    int64_t sequence_count, document_count, token_bytes;
    int code, item_size;
    bool one_to_one;  // every document is one sequence, as our own writer makes them

    int64_t byte_offset(int64_t sequence) const {
        return sequence == sequence_count ? token_bytes : load<int64_t>(pointers, sequence);
    }
    int64_t begin(int64_t document) const {  // in tokens
        return byte_offset(one_to_one ? document : load<int64_t>(documents, document)) >> __builtin_ctz(item_size);
    }
    int64_t length(int64_t document) const {
        return one_to_one ? load<int32_t>(lengths, document) : begin(document + 1) - begin(document);
    }
};

// A run of tokens of one document: what rows are made of.
struct Piece {
    int64_t document, offset, count;
};

// `__restrict__`: or the compiler must think that `out` may change the tokens, and widens one at a time.
template <class T>
ZIYA_INLINE void widen_each(const char* __restrict__ tokens, int64_t count, int64_t* __restrict__ out) {
    for (int64_t i = 0; i < count; ++i) {
        T value;
        std::memcpy(&value, tokens + i * sizeof(T), sizeof(T));
        out[i] = static_cast<int64_t>(value);
    }
}

#ifdef ZIYA_X86
template <class T>
ZIYA_WIDE void widen_wide(const char* tokens, int64_t count, int64_t* out) {
    widen_each<T>(tokens, count, out);
}
#endif

template <class T>
inline void widen(const char* tokens, int64_t begin, int64_t count, int64_t* out) {
    tokens += begin * static_cast<int64_t>(sizeof(T));
#ifdef ZIYA_X86
    if (cpu() == Cpu::wide) return widen_wide<T>(tokens, count, out);
#endif
    widen_each<T>(tokens, count, out);
}

class Corpus {
public:
    explicit Corpus(std::vector<File> files) : files_(std::move(files)) {
        for (const File& file : files_) {
            first_document_.push_back(documents_);
            documents_ += file.document_count;
            tokens_ += file.token_bytes / file.item_size;
        }
    }

    int64_t documents() const { return documents_; }
    int64_t tokens() const { return tokens_; }

    int64_t length(int64_t document) const {
        const size_t f = file_of(document);
        return files_[f].length(document - first_document_[f]);
    }

    // Documents that follow each other in an order, read together: their lengths lie all over the file, and are on
    // their way before they are needed.
    struct Documents {
        uint64_t documents[Permutation::kBatch];
        int64_t lengths[Permutation::kBatch];
        int64_t count = 0;

        void read(const Corpus& corpus, const Permutation& order, int64_t rank, int64_t wanted = Permutation::kBatch) {
            count = std::min(wanted, corpus.documents_ - rank);
            order.fill(rank, count, documents);
            if (corpus.files_.size() == 1 && corpus.files_[0].one_to_one) {  // as most are; the loads overlap
                const char* all = corpus.files_[0].lengths;
                for (int64_t k = 0; k < count; ++k) lengths[k] = load<int32_t>(all, documents[k]);
                return;
            }
            for (int64_t k = 0; k < count; ++k) corpus.prefetch_length(documents[k]);
            for (int64_t k = 0; k < count; ++k) lengths[k] = corpus.length(documents[k]);
        }
    };

    // Where the tokens of a document begin, on its way to the cache.
    void prefetch_begin(int64_t document) const {
        const size_t f = file_of(document);
        if (files_[f].one_to_one) __builtin_prefetch(files_[f].pointers + 8 * (document - first_document_[f]));
    }

    void prefetch_tokens(const Piece& piece) const {
        const size_t f = file_of(piece.document);
        const File& file = files_[f];
        const char* begin =
            file.tokens + (file.begin(piece.document - first_document_[f]) + piece.offset) * file.item_size;
        // The processor sees by itself how a longer piece goes on.
        const int64_t bytes = std::min<int64_t>(piece.count * file.item_size, 1024);
        for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(begin + at);
    }

    void copy(const Piece& piece, int64_t* out) const {
        const size_t f = file_of(piece.document);
        const File& file = files_[f];
        const int64_t begin = file.begin(piece.document - first_document_[f]) + piece.offset;
        switch (file.code) {  // Megatron's codes
            case 1: return widen<uint8_t>(file.tokens, begin, piece.count, out);
            case 2: return widen<int8_t>(file.tokens, begin, piece.count, out);
            case 3: return widen<int16_t>(file.tokens, begin, piece.count, out);
            case 4: return widen<int32_t>(file.tokens, begin, piece.count, out);
            case 5: return widen<int64_t>(file.tokens, begin, piece.count, out);
            default: return widen<uint16_t>(file.tokens, begin, piece.count, out);
        }
    }

    // The samples that start in `epoch`: (rank in the epoch's document order, offset in that document) of
    // each. Sample k of the endless stream starts at token k * length; epoch e holds the tokens from
    // e * tokens to (e + 1) * tokens.
    std::vector<int64_t> sample_index(uint64_t key, int64_t epoch, int64_t length) const {
        const Permutation order(key, epoch, kDocuments, documents_);
        const int64_t epoch_begin = epoch * tokens_;
        const auto samples_before = [&](int64_t token) { return (token + length - 1) / length; };
        const int64_t samples = samples_before(epoch_begin + tokens_) - samples_before(epoch_begin);
        int64_t next = samples_before(epoch_begin) * length - epoch_begin, begin = 0;
        std::vector<int64_t> index(2 * (samples + 1));
        int64_t* out = index.data();
        Documents batch;
        for (int64_t first = 0; first < documents_; first += batch.count) {
            batch.read(*this, order, first);
            for (int64_t k = 0; k < batch.count; ++k) {
                const int64_t end = begin + batch.lengths[k];
                for (; next < end; next += length, out += 2) {
                    out[0] = first + k;
                    out[1] = next - begin;
                }
                begin = end;
            }
        }
        index.resize(2 * samples);
        return index;
    }

    // The pieces that fill `count` tokens of the endless stream from (epoch, rank, offset) on.
    std::vector<Piece> stream_pieces(uint64_t key, int64_t epoch, int64_t rank, int64_t offset,
                                     int64_t count) const {
        std::vector<Piece> pieces;
        Documents batch;
        for (; count > 0; ++epoch, rank = 0) {
            const Permutation order(key, epoch, kDocuments, documents_);
            // The first batch is as large as most rows need, so that a row does not look up documents in vain.
            for (int64_t wanted = 16; count > 0 && rank < documents_; rank += batch.count, wanted = Permutation::kBatch) {
                batch.read(*this, order, rank, wanted);
                for (int64_t k = 0; k < std::min<int64_t>(16, batch.count); ++k) prefetch_begin(batch.documents[k]);
                for (int64_t k = 0; count > 0 && k < batch.count; ++k) {
                    const int64_t taken = std::min(batch.lengths[k] - offset, count);
                    if (taken > 0) pieces.push_back({static_cast<int64_t>(batch.documents[k]), offset, taken});
                    count -= taken;
                    offset = 0;
                }
            }
        }
        return pieces;
    }

private:
    void prefetch_length(int64_t document) const {
        const size_t f = file_of(document);
        if (files_[f].one_to_one) __builtin_prefetch(files_[f].lengths + 4 * (document - first_document_[f]));
    }

    size_t file_of(int64_t document) const {
        if (files_.size() == 1) return 0;
        return std::upper_bound(first_document_.begin(), first_document_.end(), document) -
               first_document_.begin() - 1;
    }

    std::vector<File> files_;
    std::vector<int64_t> first_document_;
    int64_t documents_ = 0, tokens_ = 0;
};

// Writes one row: tokens [S + 1], starts [S], mask [S]. The pieces hold at most S + 1 tokens; the rest is
// padding, which forms a run of its own that is never predicted.
inline void fill_row(const Corpus& corpus, const Piece* pieces, int64_t piece_count, int64_t length,
                     int64_t pad, int64_t* tokens, int32_t* starts, bool* mask) {
    for (int64_t p = 0; p < piece_count; ++p) corpus.prefetch_begin(pieces[p].document);
    for (int64_t p = 0; p < piece_count; ++p) corpus.prefetch_tokens(pieces[p]);
    int64_t at = 0;
    for (int64_t p = 0; p < piece_count; ++p) {
        const int64_t end = at + pieces[p].count;
        corpus.copy(pieces[p], tokens + at);
        std::fill(starts + at, starts + std::min(end, length), static_cast<int32_t>(at));
        std::fill(mask + at, mask + end - 1,
                  true);  // position end - 1 would predict the next piece's first token
        if (end <= length) mask[end - 1] = false;
        at = end;
    }
    std::fill(tokens + at, tokens + length + 1, pad);
    if (at < length) {
        std::fill(starts + at, starts + length, static_cast<int32_t>(at));
        std::fill(mask + at, mask + length, false);
    }
}

// What is wrong with a pair of files, or "" when all is well.
inline std::string check(const File& file) {
    using std::to_string;
    int64_t expected = 0;
    for (int64_t s = 0; s < file.sequence_count; ++s) {
        const int64_t length = load<int32_t>(file.lengths, s), pointer = load<int64_t>(file.pointers, s);
        if (length < 0) return "sequence " + to_string(s) + " has length " + to_string(length);
        if (pointer != expected)
            return "sequence " + to_string(s) + " starts at byte " + to_string(pointer) +
                   " although the lengths before it take " + to_string(expected) + " bytes";
        expected += length * file.item_size;
    }
    if (expected != file.token_bytes)
        return "the lengths add up to " + to_string(expected) + " bytes of tokens, the .bin holds " +
               to_string(file.token_bytes);
    int64_t previous = 0;
    for (int64_t d = 0; d <= file.document_count; ++d) {
        const int64_t first = load<int64_t>(file.documents, d);
        if (first < previous || first > file.sequence_count || (d == 0 && first != 0))
            return "document " + to_string(d) + " starts at sequence " + to_string(first) +
                   ", after sequence " + to_string(previous) + " of " + to_string(file.sequence_count);
        previous = first;
    }
    if (previous != file.sequence_count)
        return "the documents end at sequence " + to_string(previous) + " of " +
               to_string(file.sequence_count);
    return "";
}

}  // namespace ziya
