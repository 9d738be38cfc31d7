// zlib's CRC-32, as the side-cars have it, several times as fast as zlib's.
//
// A CRC is the remainder of the message, taken as a polynomial over GF(2), by P. A block of the message may be replaced
// by anything of the same remainder: its halves times x^distance mod P, added to the block `distance` bits further on
// (Gopal et al. 2009, "Fast CRC computation for generic polynomials using PCLMULQDQ"). So long data shrink to 16 bytes,
// whose CRC the plain table gives.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

#include "cpu.h"
#include "permutation.h"  // kGolden

namespace ziya {

constexpr uint32_t kPolynomial = 0xedb88320;  // P without x^32; bit 31 is the coefficient of x^0

using CrcTables = std::array<std::array<uint32_t, 256>, 8>;

// tables[k][b]: the CRC of byte b with k zero bytes behind it.
constexpr CrcTables crc_tables() {
    CrcTables tables{};
    for (uint32_t b = 0; b < 256; ++b) {
        uint32_t crc = b;
        for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? kPolynomial : 0);
        tables[0][b] = crc;
    }
    for (size_t k = 1; k < 8; ++k)
        for (uint32_t b = 0; b < 256; ++b) {
            const uint32_t before = tables[k - 1][b];
            tables[k][b] = before >> 8 ^ tables[0][before & 255];
        }
    return tables;
}

inline constexpr CrcTables kCrcTables = crc_tables();

// `state`: the CRC inverted, as it runs.
inline uint32_t crc_plain(uint32_t state, const unsigned char* data, int64_t size) {
    const CrcTables& t = kCrcTables;
    for (; size >= 8; data += 8, size -= 8) {  // "slicing by 8"
        state ^= data[0] | data[1] << 8 | data[2] << 16 | static_cast<uint32_t>(data[3]) << 24;
        state = t[7][state & 255] ^ t[6][state >> 8 & 255] ^ t[5][state >> 16 & 255] ^ t[4][state >> 24] ^
                t[3][data[4]] ^ t[2][data[5]] ^ t[1][data[6]] ^ t[0][data[7]];
    }
    for (; size > 0; ++data, --size) state = state >> 8 ^ t[0][(state ^ *data) & 255];
    return state;
}

#ifdef ZIYA_X86

// x^n mod P as a factor of a carry-less product of two reflected numbers, which comes out one bit too low.
constexpr uint64_t power(int n) {
    uint32_t value = 0x80000000;  // x^0
    for (; n > 0; --n) value = value >> 1 ^ (value & 1 ? kPolynomial : 0);
    return static_cast<uint64_t>(value) << 1;
}

// The factors that move a block of 16 bytes `bits` further on: of its first half and of its second.
template <int bits>
ZIYA_FOR("sse4.1,pclmul") ZIYA_INLINE __m128i factors() {
    constexpr uint64_t first = power(bits + 32), second = power(bits - 32);
    return _mm_set_epi64x(static_cast<int64_t>(second), static_cast<int64_t>(first));
}

ZIYA_FOR("sse4.1,pclmul") ZIYA_INLINE __m128i fold(__m128i block, __m128i by, __m128i onto) {
    const __m128i first = _mm_clmulepi64_si128(block, by, 0x00), second = _mm_clmulepi64_si128(block, by, 0x11);
    return _mm_xor_si128(_mm_xor_si128(first, second), onto);
}

ZIYA_FOR("sse4.1,pclmul") ZIYA_INLINE __m128i load_block(const unsigned char* data) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(data));
}

// The CRC of four blocks and of what is left behind them.
ZIYA_FOR("sse4.1,pclmul")
inline uint32_t crc_end(const __m128i* four, const unsigned char* data, int64_t size) {
    const __m128i by = factors<128>();
    __m128i block = four[0];
    for (int k = 1; k < 4; ++k) block = fold(block, by, four[k]);
    for (; size >= 16; data += 16, size -= 16) block = fold(block, by, load_block(data));
    unsigned char bytes[16];
    _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes), block);
    return crc_plain(crc_plain(0, bytes, 16), data, size);
}

// size: 64 or more.
ZIYA_FOR("sse4.1,pclmul")
inline uint32_t crc_carryless(uint32_t state, const unsigned char* data, int64_t size) {
    const __m128i by = factors<512>();
    __m128i four[4];
    for (int k = 0; k < 4; ++k) four[k] = load_block(data + 16 * k);
    four[0] = _mm_xor_si128(four[0], _mm_cvtsi32_si128(static_cast<int>(state)));
    for (data += 64, size -= 64; size >= 64; data += 64, size -= 64)
        for (int k = 0; k < 4; ++k) four[k] = fold(four[k], by, load_block(data + 16 * k));
    return crc_end(four, data, size);
}

ZIYA_WIDE ZIYA_INLINE __m512i fold_wide(__m512i block, __m512i by, __m512i onto) {
    const __m512i first = _mm512_clmulepi64_epi128(block, by, 0x00);
    const __m512i second = _mm512_clmulepi64_epi128(block, by, 0x11);
    return _mm512_ternarylogic_epi64(first, second, onto, 0x96);  // the xor of all three
}

// size: 256 or more.
ZIYA_WIDE
inline uint32_t crc_wide(uint32_t state, const unsigned char* data, int64_t size) {
    const __m512i far = _mm512_broadcast_i32x4(factors<2048>()), near = _mm512_broadcast_i32x4(factors<512>());
    __m512i wide[4];
    for (int k = 0; k < 4; ++k) wide[k] = _mm512_loadu_si512(data + 64 * k);
    wide[0] = _mm512_xor_si512(wide[0], _mm512_zextsi128_si512(_mm_cvtsi32_si128(static_cast<int>(state))));
    for (data += 256, size -= 256; size >= 256; data += 256, size -= 256)
        for (int k = 0; k < 4; ++k) wide[k] = fold_wide(wide[k], far, _mm512_loadu_si512(data + 64 * k));
    __m512i block = wide[0];
    for (int k = 1; k < 4; ++k) block = fold_wide(block, near, wide[k]);
    for (; size >= 64; data += 64, size -= 64) block = fold_wide(block, near, _mm512_loadu_si512(data));
    __m128i four[4];
    std::memcpy(four, &block, 64);
    return crc_end(four, data, size);
}

#endif

// zlib.crc32(data, crc), with what `kind` of processor can; more than it can is a mistake of ours.
inline uint32_t crc32(const void* from, int64_t size, uint32_t crc, Cpu kind) {
    const auto* data = static_cast<const unsigned char*>(from);
#ifdef ZIYA_X86
    if (kind == Cpu::wide && size >= 256) return ~crc_wide(~crc, data, size);
    if (kind != Cpu::plain && size >= 64) return ~crc_carryless(~crc, data, size);
#endif
    return ~crc_plain(~crc, data, size);
}

// A sum over elements that does not depend on how they are cut and who has which: each one's bits times an odd number
// made of its place, mod 2^64. So parts of a tensor can be summed anywhere, and the parts' sums added.
// Element e of a box `width` wide lies at e / width * stride + offset + e % width of the whole tensor.
template <typename Bits>
ZIYA_INLINE uint64_t run_sum(const Bits* data, int64_t count, uint64_t place) {
    uint64_t sum = 0;
    for (int64_t k = 0; k < count; ++k, place += kGolden)
        sum += data[k] * ((place ^ place >> 32) | 1);
    return sum;
}

#ifdef ZIYA_X86
template <typename Bits>
ZIYA_WIDE uint64_t run_sum_wide(const Bits* data, int64_t count, uint64_t place) {
    return run_sum(data, count, place);
}
#endif

template <typename Bits>
uint64_t place_sum(const Bits* data, int64_t size, int64_t first, int64_t width, int64_t stride, int64_t offset,
                   uint64_t salt) {
    uint64_t sum = 0;
    for (int64_t done = 0; done < size;) {
        const int64_t row = (first + done) / width, column = (first + done) % width;
        const int64_t count = std::min(width - column, size - done);
        const uint64_t place = salt + static_cast<uint64_t>(row * stride + offset + column) * kGolden;
#ifdef ZIYA_X86
        if (cpu() == Cpu::wide) {
            sum += run_sum_wide(data + done, count, place);
            done += count;
            continue;
        }
#endif
        sum += run_sum(data + done, count, place);
        done += count;
    }
    return sum;
}

}  // namespace ziya
