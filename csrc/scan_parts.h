// The division of a scan into units of channels, which run in parallel. With fewer units than threads, the sequence is
// also divided into parts.
#pragma once

#include <type_traits>
#include <vector>

#include "scan_recurrence.h"
#include "scan_states.h"
#include "tile.h"

template <class S>
struct ScanParts {
    static constexpr int W = kWidth<S>;

    const ScanProblem &p;
    const Tiles<S> tiles;
    const int64_t states = tiles.states, row = tiles.row;
    const StateMatrix<S> matrix;

    explicit ScanParts(const ScanProblem &problem) : p(problem), tiles(problem), matrix(problem, tiles.states) {}

    S *start_of(int64_t b, int64_t tile, int64_t d) const {
        return static_cast<S *>(p.starts) + ((b * tiles.count + tile) * p.channels + d) * p.states;
    }

    // Call `run(number of vectors, first state)` until all states are covered
    template <class Run>
    void for_states(Run run) const {
        constexpr int most = Recurrence<S>::kMostVectors;
        int64_t n = 0;
        if constexpr (most > 2)
            for (; n + most * W <= states; n += most * W) run(std::integral_constant<int, most>(), n);
        for (; n + 2 * W <= states; n += 2 * W) run(std::integral_constant<int, 2>(), n);
        if (n < states) run(std::integral_constant<int, 1>(), n);
    }

    // Return the units: whole groups, halved until every thread has a unit or each unit is a single channel
    std::vector<Unit> units() const {
        int64_t size = tiles.per_group;
        while (size > 1 && p.batch * p.groups * ceil_divide(tiles.per_group, size) < p.threads.count) size = (size + 1) / 2;
        std::vector<Unit> list;
        for (int64_t b = 0; b < p.batch; ++b)
            for (int64_t g = 0; g < p.groups; ++g)
                for (int64_t i = 0; i < tiles.per_group; i += size)
                    list.push_back({b, g * tiles.per_group + i, std::min(size, tiles.per_group - i)});
        return list;
    }

    // Return the number of parts of the sequence: one, unless there are fewer units than threads and the sequence is long
    int64_t parts(int64_t unit_count) const {
        if (unit_count >= p.threads.count) return 1;
        return std::max<int64_t>(1, std::min(tiles.count / 16, ceil_divide(2 * p.threads.count, unit_count)));
    }

    // Run every unit through the sequence with `run(unit, begin, end, state, steps, final)`. With several parts, a
    // first pass runs all but the last from a zero state. Its results, and the decay over each part, give every part's
    // true start. A second pass, `final`, runs every part from there. If `backwards`, both passes start at the end of
    // the sequence.
    template <class Run, class Initial, class Finish>
    void run_parts(bool backwards, Initial initial, Run run, Finish finish) const {
        const std::vector<Unit> list = units();
        const int64_t unit_count = list.size(), part_count = parts(unit_count), width = list[0].count * states;
        Buffer<S> all_states(unit_count * part_count * width), all_steps(unit_count * part_count * list[0].count);
        const auto state_of = [&](int64_t unit, int64_t part) { return all_states + (unit * part_count + part) * width; };
        const auto steps_of = [&](int64_t unit, int64_t part) {
            return all_steps + (unit * part_count + part) * list[0].count;
        };
        const auto run_part = [&](int64_t unit, int64_t part, bool final) {
            run(list[unit], tiles.count * part / part_count, tiles.count * (part + 1) / part_count,
                state_of(unit, part), final ? nullptr : steps_of(unit, part), final);
        };
        // index of the i-th part in running order
        const auto in_order = [&](int64_t i) { return backwards ? part_count - 1 - i : i; };
        for_each(p.threads, unit_count * (part_count - 1),
                 [&](int64_t i) { run_part(i % unit_count, in_order(i / unit_count), false); });
        for (int64_t unit = 0; unit < unit_count; ++unit) {
            Buffer<S> entering(width);
            initial(list[unit], entering);
            for (int64_t i = 0; i < part_count; ++i) {
                S *state = state_of(unit, in_order(i));
                const S *steps = steps_of(unit, in_order(i));
                // then `state` is the true start of the part, and `entering` what the part reaches from a zero state
                for (int64_t k = 0; k < width; ++k) std::swap(entering[k], state[k]);
                if (i + 1 == part_count) break;
                for (int64_t c = 0; c < list[unit].count; ++c) {
                    Buffer<S> moving(states);
                    std::copy(state + c * states, state + (c + 1) * states, static_cast<S *>(moving));
                    matrix.decay(moving, list[unit].first + c, steps[c]);
                    for (int64_t n = 0; n < states; ++n) entering[c * states + n] += moving[n];
                }
            }
        }
        for_each(p.threads, unit_count * part_count, [&](int64_t i) {
            const int64_t unit = i % unit_count, part = i / unit_count;
            run_part(unit, part, true);
            if (part == in_order(part_count - 1)) finish(list[unit], state_of(unit, part));
        });
    }
};
