// The state matrix A as the recurrence wants it.
#pragma once

#include <cmath>

#include "buffer.h"
#include "scan.h"
#include "vector_math.h"

template <class S>
struct StateMatrix {
    const int64_t states;  // filled up to whole vectors
    // by channel: times log₂e, as it is, and its reciprocal
    Buffer<S> A2, A1, inverse_A;

    StateMatrix(const ScanProblem &p, int64_t states)
        : states(states), A2(p.channels * states), A1(p.channels * states), inverse_A(p.channels * states) {
        const S *A = static_cast<const S *>(p.A);
        for (int64_t d = 0; d < p.channels; ++d)
            for (int64_t n = 0; n < states; ++n) {
                const S given = n < p.states ? A[d * p.states + n] : S(0);
                const S a = nonzero(p.A_is_log && n < p.states ? -std::exp(given) : given);
                A1[d * states + n] = a;
                A2[d * states + n] = a * S(kLog2E);
                inverse_A[d * states + n] = S(1) / a;
            }
    }

    // e^{A ΣΔ}: what is left of a channel's state after steps
    void decay(S *state, int64_t d, S steps) const {
        for (int64_t n = 0; n < states; n += kWidth<S>)
            store<S>(state + n, load<S>(state + n) * exp2<S>(load<S>(A2 + d * states + n) * steps));
    }

  private:
    // An A this small acts as zero does, and spares (e^{ΔA} − 1)/A the special case
    static S nonzero(S a) {
        constexpr S least = sizeof(S) == 4 ? S(1e-12) : S(1e-20);
        return std::abs(a) < least ? -least : a;
    }
};
