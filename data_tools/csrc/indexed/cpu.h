// Code for newer x86 processors stands beside plain code and is chosen when the program runs, never by a compiler
// flag: one build runs everywhere, and gives the same bits everywhere.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define ZIYA_X86 1
#define ZIYA_FOR(features) __attribute__((target(features)))
#define ZIYA_WIDE ZIYA_FOR("avx512f,avx512vl,avx512dq,sse4.1,pclmul,vpclmulqdq,prefer-vector-width=512")
#define ZIYA_INLINE inline __attribute__((always_inline))
#else
#define ZIYA_INLINE inline
#endif

namespace ziya {

enum class Cpu { plain, carryless, wide };  // each can what those before it can

// carryless: 64-bit products without carries (2010). wide: those, and 64-bit integer products, on 512 bits (2019).
inline Cpu cpu() {
#ifdef ZIYA_X86
    static const Cpu found = [] {
        __builtin_cpu_init();
        const bool carryless = __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1");
        const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("vpclmulqdq");
        return carryless && wide ? Cpu::wide : carryless ? Cpu::carryless : Cpu::plain;
    }();
    return found;
#else
    return Cpu::plain;
#endif
}

}  // namespace ziya
