// Products of small matrices, used to project tiles.
#pragma once

#include "vector_math.h"

// A matrix with arbitrary strides
template <class S>
struct Strided {
    const S *data;
    int64_t row, column;
};

// Compute rows × NV vectors of a product, accumulated in registers
template <class S, int rows, int NV>
inline void multiply_block(const Strided<S> &a, const S *b, int64_t b_row, S *to, int64_t to_row, int64_t inner,
                           bool add) {
    constexpr int W = kWidth<S>;
    Real<S> sums[rows][NV];
    for (int r = 0; r < rows; ++r)
        for (int v = 0; v < NV; ++v) sums[r][v] = add ? load<S>(to + r * to_row + v * W) : Real<S>{};
    for (int64_t k = 0; k < inner; ++k) {
        Real<S> factor[NV];
        for (int v = 0; v < NV; ++v) factor[v] = load<S>(b + k * b_row + v * W);
        for (int r = 0; r < rows; ++r) {
            const Real<S> value = splat<S>(a.data[r * a.row + k * a.column]);
            for (int v = 0; v < NV; ++v) sums[r][v] += value * factor[v];
        }
    }
    for (int r = 0; r < rows; ++r)
        for (int v = 0; v < NV; ++v) store<S>(to + r * to_row + v * W, sums[r][v]);
}

template <class S, int rows>
inline void multiply_rows(const Strided<S> &a, const S *b, int64_t b_row, S *to, int64_t to_row, int64_t columns,
                          int64_t inner, bool add) {
    // as many sums as fit the instruction set's registers: 4 × 4 of 32, or 4 × 2 of 16
    constexpr int NV = VECTOR_BYTES == 64 ? 4 : 2, W = kWidth<S>;
    int64_t j = 0;
    for (; j + NV * W <= columns; j += NV * W) multiply_block<S, rows, NV>(a, b + j, b_row, to + j, to_row, inner, add);
    if constexpr (NV > 2)
        for (; j + 2 * W <= columns; j += 2 * W) multiply_block<S, rows, 2>(a, b + j, b_row, to + j, to_row, inner, add);
    for (; j < columns; j += W) multiply_block<S, rows, 1>(a, b + j, b_row, to + j, to_row, inner, add);
}

// Set `to` (rows, columns) to a (rows, inner) · b (inner, columns), or add the product to it. The number of columns is
// a multiple of the vector width. Rows of b and `to` are `b_row` and `to_row` elements apart.
template <class S>
void multiply(Strided<S> a, const S *b, int64_t b_row, S *to, int64_t to_row, int64_t rows, int64_t columns,
              int64_t inner, bool add = false) {
    constexpr int block = 4;
    int64_t i = 0;
    for (; i + block <= rows; i += block, a.data += block * a.row)
        multiply_rows<S, block>(a, b, b_row, to + i * to_row, to_row, columns, inner, add);
    for (; i < rows; ++i, a.data += a.row)
        multiply_rows<S, 1>(a, b, b_row, to + i * to_row, to_row, columns, inner, add);
}
