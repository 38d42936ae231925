// The state matrix A in the form that the recurrence needs.
#pragma once

#include <cmath>

#include "buffer.h"
#include "scan.h"
#include "vector_math.h"

template <class S>
struct StateMatrix {
    const int64_t states;  // padded to whole vectors
    // for each channel: A log₂e, A and 1/A
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

    // Multiply a channel's state by e^{A ΣΔ}, its decay over several positions
    void decay(S *state, int64_t d, S steps) const {
        for (int64_t n = 0; n < states; n += kWidth<S>)
            store<S>(state + n, load<S>(state + n) * exp2<S>(load<S>(A2 + d * states + n) * steps));
    }

  private:
    // Replace an A near zero by a value so small that it acts as zero, which avoids 0/0 in (e^{ΔA} − 1)/A
    static S nonzero(S a) {
        constexpr S least = sizeof(S) == 4 ? S(1e-12) : S(1e-20);
        return std::abs(a) < least ? -least : a;
    }
};
