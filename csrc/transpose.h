// Transposition between the layout of tensors (one row per pixel) and the layout for vectors (one row per channel).
#pragma once

#include <cstdint>
#include <cstring>

// Transpose 4 × 4 floats from four rows to four rows
inline void transpose_block(const float *const *from, float *const *to) {
    typedef float Four __attribute__((vector_size(16)));
    typedef int32_t Index __attribute__((vector_size(16)));
#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Index{__VA_ARGS__})
#endif
    Four row[4];
    for (int i = 0; i < 4; ++i) std::memcpy(&row[i], from[i], sizeof(Four));
    const Four a = SHUFFLE(row[0], row[1], 0, 4, 1, 5), b = SHUFFLE(row[2], row[3], 0, 4, 1, 5);
    const Four c = SHUFFLE(row[0], row[1], 2, 6, 3, 7), d = SHUFFLE(row[2], row[3], 2, 6, 3, 7);
    const Four column[4] = {SHUFFLE(a, b, 0, 1, 4, 5), SHUFFLE(a, b, 2, 3, 6, 7), SHUFFLE(c, d, 0, 1, 4, 5),
                            SHUFFLE(c, d, 2, 3, 6, 7)};
#undef SHUFFLE
    for (int i = 0; i < 4; ++i) std::memcpy(to[i], &column[i], sizeof(Four));
}

inline void transpose_block(const double *const *from, double *const *to) {
    for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 4; ++j) to[j][i] = from[i][j];
}

// to_row(j)[i] = from_row(i)[j] for i < rows and j < columns
template <class S, class FromRow, class ToRow>
inline void transpose(FromRow from_row, ToRow to_row, int64_t rows, int64_t columns) {
    const int64_t whole_rows = rows / 4 * 4, whole_columns = columns / 4 * 4;
    for (int64_t i = 0; i < whole_rows; i += 4) {
        for (int64_t j = 0; j < whole_columns; j += 4) {
            const S *from[4];
            S *to[4];
            for (int k = 0; k < 4; ++k) from[k] = from_row(i + k) + j, to[k] = to_row(j + k) + i;
            transpose_block(from, to);
        }
        for (int64_t j = whole_columns; j < columns; ++j)
            for (int k = 0; k < 4; ++k) to_row(j)[i + k] = from_row(i + k)[j];
    }
    for (int64_t i = whole_rows; i < rows; ++i)
        for (int64_t j = 0; j < columns; ++j) to_row(j)[i] = from_row(i)[j];
}
