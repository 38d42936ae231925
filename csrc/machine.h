// Instruction sets of this machine, as reported by the processor itself. __builtin_cpu_supports queries the compiler's
// runtime library instead, and the runtime library that zig links reports no instruction sets.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>

// Return whether the processor has AVX, FMA and the given features (EBX of CPUID leaf 7), and whether the system saves
// the given registers (XCR0)
inline bool machine_has(uint32_t features, uint32_t registers) {
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return false;
    constexpr uint32_t kBasic = bit_OSXSAVE | bit_AVX | bit_FMA;
    if ((c & kBasic) != kBasic) return false;
    uint32_t saved, high;
    asm volatile("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    return (saved & registers) == registers && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & features) == features;
}

inline bool machine_has_avx2() { return machine_has(bit_AVX2, 0x6); }

inline bool machine_has_avx512() {
#if defined(__APPLE__)
    constexpr uint32_t kRegisters = 0x6;  // macOS enables the AVX-512 registers on first use
#else
    constexpr uint32_t kRegisters = 0xe6;
#endif
    return machine_has(bit_AVX2 | bit_AVX512F | bit_AVX512DQ | bit_AVX512BW | bit_AVX512VL, kRegisters);
}
#else
inline bool machine_has_avx2() { return false; }
inline bool machine_has_avx512() { return false; }
#endif
