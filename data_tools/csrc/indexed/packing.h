// Packing: whole documents into rows by best-fit decreasing.
#pragma once

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

struct Packed {
    std::vector<Piece> pieces;  // row by row
    std::vector<int64_t> rows;  // row r is pieces [rows[r], rows[r + 1])
};

// Cuts every document into pieces of at most `length` + 1 tokens that overlap by one token (so that each
// token but the document's first is predicted exactly once); nearly always that is one piece. Documents of
// fewer than two tokens have nothing to predict and are left out. Pieces are in the epoch's document order.
inline std::vector<Piece> cut(const Corpus& corpus, uint64_t key, int64_t epoch, int64_t length) {
    const Permutation order(key, epoch, kDocuments, corpus.documents());
    std::vector<Piece> pieces;
    pieces.reserve(corpus.documents());
    for (int64_t rank = 0; rank < corpus.documents(); ++rank) {
        const int64_t document = order(rank), tokens = corpus.length(document);
        for (int64_t offset = 0; offset + 1 < tokens; offset += length)
            pieces.push_back({document, offset, std::min(length + 1, tokens - offset)});
    }
    return pieces;
}

// Longest piece first, each into the fullest row that still has room for it. The number of rows depends on
// the lengths alone, so it is the same in every epoch; which documents of equal length meet depends on the
// epoch.
inline Packed pack(const Corpus& corpus, uint64_t key, int64_t epoch, int64_t length) {
    const std::vector<Piece> pieces = cut(corpus, key, epoch, length);
    const int64_t count = pieces.size(), capacity = length + 1;

    std::vector<int64_t> slot(capacity + 2, 0), by_length(count);  // a counting sort, stable
    for (const Piece& piece : pieces) ++slot[capacity - piece.count + 1];
    for (int64_t i = 1; i < capacity + 2; ++i) slot[i] += slot[i - 1];
    for (int64_t p = 0; p < count; ++p) by_length[slot[capacity - pieces[p].count]++] = p;

    std::vector<int64_t> row_of(count), row_pieces;
    std::vector<std::vector<int64_t>> with_room(capacity + 1);  // open rows by the tokens they have room for
    Bits rooms(capacity + 1);                                   // the rooms for which there is a row
    for (int64_t p : by_length) {
        int64_t room = capacity, row = row_pieces.size();
        const int64_t found = rooms.from(pieces[p].count);
        if (found < 0) {
            row_pieces.push_back(0);
        } else {
            room = found;
            row = with_room[room].back();
            with_room[room].pop_back();
            if (with_room[room].empty()) rooms.erase(room);
        }
        row_of[p] = row;
        ++row_pieces[row];
        room -= pieces[p].count;
        if (room >= 2) {  // no piece is shorter
            if (with_room[room].empty()) rooms.insert(room);
            with_room[room].push_back(row);
        }
    }

    Packed packed;
    packed.rows.assign(1, 0);
    for (int64_t pieces_here : row_pieces) packed.rows.push_back(packed.rows.back() + pieces_here);
    // Inside a row the pieces keep the epoch's order: longest first would always show the long ones early.
    std::vector<int64_t> next(packed.rows.begin(), packed.rows.end() - 1);
    packed.pieces.resize(count);
    for (int64_t p = 0; p < count; ++p) packed.pieces[next[row_of[p]]++] = pieces[p];
    return packed;
}

}  // namespace ziya
