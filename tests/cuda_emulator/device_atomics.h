// Atomic operations on global and shared memory: relaxed as in CUDA, and real, so that ThreadSanitizer knows.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace cuda_emulator {

template <class T>
struct Same {
    using type = T;
};
// A parameter of this type takes no part in the deduction of T: atomicAdd(&sum, 1) with a float sum.
template <class T>
using SameT = typename Same<T>::type;

template <class T, class Update>
T atomic_update(T* address, Update update) {
    static_assert(sizeof(T) == 8 || sizeof(T) == 4 || sizeof(T) == 2);
    using Word = std::conditional_t<sizeof(T) == 8, std::uint64_t,
                                    std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint16_t>>;
    Word* const word = reinterpret_cast<Word*>(address);
    Word expected = __atomic_load_n(word, __ATOMIC_RELAXED);
    for (;;) {
        T before;
        std::memcpy(&before, &expected, sizeof(T));
        const T after = update(before);
        Word desired;
        std::memcpy(&desired, &after, sizeof(T));
        if (__atomic_compare_exchange_n(word, &expected, desired, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
            return before;
        }
    }
}

}  // namespace cuda_emulator

#define CUDA_EMULATOR_ATOMIC(NAME, EXPRESSION)                                                      \
    template <class T>                                                                              \
    T NAME(T* address, cuda_emulator::SameT<T> value) {                                             \
        return cuda_emulator::atomic_update(address, [value](T old) -> T { return (EXPRESSION); }); \
    }
CUDA_EMULATOR_ATOMIC(atomicAdd, old + value)
CUDA_EMULATOR_ATOMIC(atomicSub, old - value)
CUDA_EMULATOR_ATOMIC(atomicMin, value < old ? value : old)
CUDA_EMULATOR_ATOMIC(atomicMax, old < value ? value : old)
CUDA_EMULATOR_ATOMIC(atomicAnd, old& value)
CUDA_EMULATOR_ATOMIC(atomicOr, old | value)
CUDA_EMULATOR_ATOMIC(atomicXor, old ^ value)
CUDA_EMULATOR_ATOMIC(atomicExch, ((void)old, value))
CUDA_EMULATOR_ATOMIC(atomicInc, old >= value ? T(0) : T(old + 1))
CUDA_EMULATOR_ATOMIC(atomicDec, old == 0 || old > value ? value : T(old - 1))
#undef CUDA_EMULATOR_ATOMIC

template <class T>
T atomicCAS(T* address, cuda_emulator::SameT<T> compare, cuda_emulator::SameT<T> value) {
    return cuda_emulator::atomic_update(address, [compare, value](T old) -> T { return old == compare ? value : old; });
}
