// Tiles of kTile positions: load them from tensors of any strides into short arrays that stay in the L1 cache, apply
// softplus and projections, and write results back.
#pragma once

#include <algorithm>

#include "buffer.h"
#include "matrix.h"
#include "scan.h"
#include "vector_math.h"

inline int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Channels of one group and sample; they run through the sequence together, as they share B and C
struct Unit {
    int64_t b, first, count;
};

template <class S>
struct Tiles {
    using V = Real<S>;
    static constexpr int W = kWidth<S>;

    const ScanProblem &p;
    const int64_t length = p.outer * p.inner;
    const int64_t count = ceil_divide(length, kTile);
    const int64_t per_group = p.channels / p.groups;
    // padded to whole vectors
    const int64_t states = ceil_divide(p.states, W) * W;
    const int64_t channels = ceil_divide(p.channels, W) * W;
    // a tile's rows have columns of B from 0, of C from at_C and, with projection, of Δ from at_delta
    const int64_t at_C = states, at_delta = 2 * states, row = at_delta + (p.weight ? channels : 0);

    Buffer<S> project;       // (p.channels, row): from u to a row
    Buffer<S> project_back;  // (row, channels): from the gradient of a row to that of u

    explicit Tiles(const ScanProblem &problem) : p(problem) {
        if (!p.weight) return;
        project = Buffer<S>(p.channels * row);
        project_back = Buffer<S>(row * channels);
        for (int64_t j = 0; j < p.channels + 2 * p.states; ++j)
            for (int64_t c = 0; c < p.channels; ++c)
                project[c * row + column(j)] = project_back[column(j) * channels + c] = weight_row<const S>(p.weight, p.weight_bc, j)[c];
    }

    // Return row j of the weight or of its gradient; each of them has two parts: for Δ, and for B and C
    template <class T, class Pointer>
    T *weight_row(Pointer delta, Pointer bc, int64_t j) const {
        return j < p.channels ? static_cast<T *>(delta) + j * p.channels : static_cast<T *>(bc) + (j - p.channels) * p.channels;
    }

    // Return the column that row j of the weight projects to
    int64_t column(int64_t j) const {
        if (j < p.channels) return at_delta + j;
        j -= p.channels;
        return j < p.states ? j : at_C + j - p.states;
    }

    // The inputs of one unit for one tile. Past the end of the sequence, u, Δ, B and C are zero and leave states unchanged.
    struct Inputs {
        const Unit unit;
        int used;                      // positions of the tile within the sequence
        Buffer<S> u, delta, slope;     // (kTile, unit.count); slope is the derivative of softplus
        Buffer<S> skip, bias;          // (kTile, unit.count): D and the bias of Δ, the same in each row
        Buffer<S> others;              // (kTile, p.channels): u of all channels, if the unit has fewer
        const S *x = nullptr;          // u of all channels, with projection
        Buffer<S> rows;                // (kTile, row)
        const S *B = nullptr, *C = nullptr;  // rows of states, in `rows` or in the tensors themselves
        int64_t B_row = 0, C_row = 0;

        Inputs(const Tiles &tiles, const Unit &unit)
            : unit(unit), u(kTile * unit.count), delta(kTile * unit.count), slope(kTile * unit.count),
              skip(kTile * unit.count), bias(kTile * unit.count),
              others(tiles.p.weight && unit.count < tiles.p.channels ? kTile * tiles.p.channels : 0),
              rows(kTile * tiles.row) {
            for (int64_t i = 0; i < kTile * unit.count; ++i) {
                const int64_t d = unit.first + i % unit.count;
                if (tiles.p.D) skip[i] = static_cast<const S *>(tiles.p.D)[d];
                if (tiles.p.delta_bias) bias[i] = static_cast<const S *>(tiles.p.delta_bias)[d];
            }
        }
    };

    enum Wanted { only_B = 1, only_C = 2, both = 3 };

    template <bool slopes>
    void load_inputs(Inputs &to, int64_t tile, Wanted wanted) const {
        const Unit &unit = to.unit;
        to.used = used(tile);
        load_channels(to.u, p.u, p.u_strides, unit, tile);
        if (p.weight) {
            to.x = to.u;
            if (unit.count < p.channels) {
                load_channels(to.others, p.u, p.u_strides, {unit.b, 0, p.channels}, tile);
                to.x = to.others;
            }
            const int64_t begin = wanted == only_C ? at_C : 0, end = wanted == only_B ? at_C : at_delta;
            project_columns(to, begin, end);
            const int64_t last = unit.first + unit.count;
            project_columns(to, at_delta + unit.first / W * W, at_delta + ceil_divide(last, W) * W);
            to.B = to.rows, to.C = to.rows + at_C, to.B_row = to.C_row = row;
            copy_rows(to.delta, unit.count, to.rows + at_delta + unit.first, row, unit.count);
        } else {
            const int64_t g = unit.first / per_group;
            if (wanted & only_B) to.B = states_of(p.B, p.B_strides, unit.b, g, tile, to.rows, to.B_row);
            if (wanted & only_C) to.C = states_of(p.C, p.C_strides, unit.b, g, tile, to.rows + at_C, to.C_row);
            load_channels(to.delta, p.delta, p.delta_strides, unit, tile);
        }
        for (int64_t i = 0; i < kTile * unit.count; i += W) {
            V value = load<S>(to.delta + i) + load<S>(to.bias + i), slope = splat<S>(1);
            if (p.softplus) softplus<S, slopes>(value, value, slope);
            store<S>(to.delta + i, value);
            if (slopes) store<S>(to.slope + i, slope);
        }
        std::fill(to.delta + to.used * unit.count, to.delta + kTile * unit.count, S(0));
        std::fill(to.slope + to.used * unit.count, to.slope + kTile * unit.count, S(0));
    }

    // Load a unit's channels of a tensor shaped like u to (kTile, unit.count), with zeros past the end of the sequence
    void load_channels(S *to, const void *tensor, const int64_t *strides, const Unit &unit, int64_t tile) const {
        load_rows(to, unit.count, at(tensor, strides, unit.b, unit.first), strides[1], offsets(tile, strides + 2),
                  unit.count);
    }

    void save_channels(const S *from, void *tensor, const int64_t *strides, const Unit &unit, int64_t tile) const {
        save_rows(from, unit.count, at(tensor, strides, unit.b, unit.first), strides[1], offsets(tile, strides + 2),
                  unit.count);
    }

    void add_channels(const S *from, void *tensor, const int64_t *strides, const Unit &unit, int64_t tile) const {
        S *to = at(tensor, strides, unit.b, unit.first);
        const Offsets offset = offsets(tile, strides + 2);
        for (int t = 0; t < offset.used; ++t, from += unit.count)
            for (int64_t i = 0; i < unit.count; ++i) to[offset.at[t] + i * strides[1]] += from[i];
    }

    // Save columns of a tile's rows to a tensor shaped like B
    void save_states(const S *from, void *tensor, const int64_t *strides, int64_t b, int64_t g, int64_t tile) const {
        save_rows(from, row, at(tensor, strides, b, g), strides[2], offsets(tile, strides + 3), p.states);
    }

    int used(int64_t tile) const { return static_cast<int>(std::min<int64_t>(kTile, length - tile * kTile)); }

  private:
    // Offsets of a tile's positions in a tensor
    struct Offsets {
        int used;
        int64_t at[kTile];
    };

    Offsets offsets(int64_t tile, const int64_t *strides) const {
        Offsets result;
        result.used = used(tile);
        int64_t outer = tile * kTile / p.inner, inner = tile * kTile % p.inner;
        for (int t = 0; t < result.used; ++t) {
            result.at[t] = outer * strides[0] + inner * strides[1];
            if (++inner == p.inner) inner = 0, ++outer;
        }
        return result;
    }

    // Return the first element of a tensor for a sample and a channel or group
    static S *at(const void *tensor, const int64_t *strides, int64_t b, int64_t d) {
        return const_cast<S *>(static_cast<const S *>(tensor)) + b * strides[0] + d * strides[1];
    }

    // Return rows of B or C: in place if the tile is complete and its rows are evenly spaced and consist of whole
    // vectors, otherwise copied
    const S *states_of(const void *tensor, const int64_t *strides, int64_t b, int64_t g, int64_t tile, S *copy,
                       int64_t &row_stride) const {
        const S *from = at(tensor, strides, b, g);
        const Offsets offset = offsets(tile, strides + 3);
        const bool one_line = tile * kTile % p.inner + kTile <= p.inner;
        if (offset.used == kTile && one_line && strides[2] == 1 && states == p.states) {
            row_stride = strides[4];
            return from + offset.at[0];
        }
        load_rows(copy, row, from, strides[2], offset, p.states);
        row_stride = row;
        return copy;
    }

    // Load or save `n` values per position, `stride` apart in the tensor, into or from rows of a tile
    static void load_rows(S *to, int64_t to_row, const S *from, int64_t stride, const Offsets &offset, int64_t n) {
        for (int t = 0; t < kTile; ++t, to += to_row) {
            if (t >= offset.used)
                std::fill(to, to + n, S(0));
            else if (stride == 1)
                copy(to, from + offset.at[t], n);
            else
                for (int64_t i = 0; i < n; ++i) to[i] = from[offset.at[t] + i * stride];
        }
    }

    static void save_rows(const S *from, int64_t from_row, S *to, int64_t stride, const Offsets &offset, int64_t n) {
        for (int t = 0; t < offset.used; ++t, from += from_row) {
            if (stride == 1)
                copy(to + offset.at[t], from, n);
            else
                for (int64_t i = 0; i < n; ++i) to[offset.at[t] + i * stride] = from[i];
        }
    }

    // Copy four values at a time, as a call of memcpy costs more than copying a few values
    static void copy(S *to, const S *from, int64_t n) {
        int64_t i = 0;
        for (; i + 4 <= n; i += 4) std::memcpy(to + i, from + i, 4 * sizeof(S));
        for (; i < n; ++i) to[i] = from[i];
    }

    static void copy_rows(S *to, int64_t to_row, const S *from, int64_t from_row, int64_t n) {
        for (int t = 0; t < kTile; ++t) copy(to + t * to_row, from + t * from_row, n);
    }

    void project_columns(Inputs &to, int64_t begin, int64_t end) const {
        multiply<S>({to.x, p.channels, 1}, project + begin, row, to.rows + begin, row, kTile, end - begin, p.channels);
    }
};
