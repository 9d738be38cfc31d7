// Packing: whole documents into rows by best-fit decreasing.
#pragma once

#include <utility>

#include "corpus.h"

namespace ziya {

// A set of small numbers: a bit each, for a row of S tokens S / 64 words at most to look through.
class Bits {
public:
    explicit Bits(int64_t size) : words_(size / 64 + 1, 0) {}
    void insert(int64_t n) { words_[n / 64] |= uint64_t{1} << n % 64; }
    void erase(int64_t n) { words_[n / 64] &= ~(uint64_t{1} << n % 64); }
    // The smallest member >= n, or -1.
    int64_t from(int64_t n) const {
        uint64_t bits = words_[n / 64] >> n % 64 << n % 64;
        for (size_t word = n / 64;; bits = words_[word]) {
            if (bits) return word * 64 + __builtin_ctzll(bits);
            if (++word == words_.size()) return -1;
        }
    }

private:
    std::vector<uint64_t> words_;
};

// Every document is cut into pieces of at most `length` + 1 tokens that overlap by one token (so that each token but the
// document's first is predicted exactly once); nearly always that is one piece. Documents of fewer than two tokens have
// nothing to predict and are left out.
template <class Visit>
inline void for_pieces(int64_t tokens, int64_t length, Visit visit) {
    for (int64_t part = 0; part * length + 1 < tokens; ++part)
        visit(part, std::min(length + 1, tokens - part * length));
}

// How many pieces of each size there are: all that best fit has to know.
struct PieceCounts {
    PieceCounts(const Corpus& corpus, int64_t length) : of_size(length + 2, 0) {
        for (int64_t d = 0; d < corpus.documents(); ++d)
            for_pieces(corpus.length(d), length, [&](int64_t part, int64_t size) {
                ++of_size[size];
                ++pieces;
                tokens += size;
                cut |= part > 0;
            });
    }
    std::vector<int64_t> of_size;
    int64_t pieces = 0, tokens = 0;
    bool cut = false;  // is any document
};

// Row r is pieces [rows[r], rows[r + 1]); a piece is (document, part of it), or the document alone where none is cut.
template <class T>
struct Packed {
    std::vector<T> pieces;
    std::vector<int64_t> rows;
};

// The row of each piece, longest piece first, each into the fullest row that still has room for it; and how many pieces
// there are in each row. The number of rows depends on the lengths alone, so it is the same in every epoch.
template <class T>
inline std::vector<T> best_fit(const PieceCounts& counts, std::vector<int64_t>& pieces_in_row) {
    const int64_t capacity = counts.of_size.size() - 1;
    constexpr T kNone = static_cast<T>(-1);
    std::vector<T> row_of(counts.pieces), below;     // below[row]: the next open row with the same room
    std::vector<T> with_room(capacity + 1, kNone);  // the open row that was last given that room
    Bits rooms(capacity + 1);                       // the rooms for which there is a row
    T* out = row_of.data();
    for (int64_t size = capacity; size >= 2; --size)
        for (int64_t k = 0; k < counts.of_size[size]; ++k) {
            int64_t room = capacity;
            T row = static_cast<T>(pieces_in_row.size());
            const int64_t found = rooms.from(size);
            if (found < 0) {
                pieces_in_row.push_back(0);
                below.push_back(kNone);
            } else {
                room = found;
                row = with_room[room];
                with_room[room] = below[row];
                if (with_room[room] == kNone) rooms.erase(room);
            }
            *out++ = row;
            ++pieces_in_row[row];
            room -= size;
            if (room >= 2) {  // no piece is shorter
                if (with_room[room] == kNone) rooms.insert(room);
                below[row] = with_room[room];
                with_room[room] = row;
            }
        }
    return row_of;
}

// Which documents of equal length meet depends on the epoch. Inside a row the pieces keep the epoch's order: longest
// first would always show the long ones early. T holds every document's number and every piece's. Memory: 2 T a piece
// (3 T where documents are cut), and T + 8 bytes a row.
template <class T>
inline Packed<T> pack(const Corpus& corpus, const PieceCounts& counts, uint64_t key, int64_t epoch, int64_t length) {
    Packed<T> packed;
    std::vector<int64_t>& rows = packed.rows;
    const std::vector<T> row_of = best_fit<T>(counts, rows);
    // Until a row is full, rows[r + 1] is the place of its next piece; then it is its end.
    int64_t begin = 0;
    for (int64_t& row : rows) begin += std::exchange(row, begin);
    rows.insert(rows.begin(), 0);

    const int64_t columns = counts.cut ? 2 : 1;
    packed.pieces.resize(columns * counts.pieces);
    std::vector<int64_t> next(counts.of_size.size(), 0);  // of the pieces of a size, in the order of row_of
    for (int64_t size = next.size() - 2; size >= 0; --size) next[size] = next[size + 1] + counts.of_size[size + 1];
    const Permutation order(key, epoch, kDocuments, corpus.documents());
    Corpus::Documents batch;
    for (int64_t rank = 0; rank < corpus.documents(); rank += batch.count) {
        batch.read(corpus, order, rank);
        for (int64_t k = 0; k < batch.count; ++k)
            for_pieces(batch.lengths[k], length, [&](int64_t part, int64_t size) {
                T* piece = &packed.pieces[columns * rows[row_of[next[size]++] + 1]++];
                piece[0] = static_cast<T>(batch.documents[k]);
                if (columns == 2) piece[1] = static_cast<T>(part);
            });
    }
    return packed;
}

}  // namespace ziya
