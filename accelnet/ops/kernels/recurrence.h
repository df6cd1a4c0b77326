// Simple, LSTM and GRU cells over all steps. Sequences do not meet, so every thread takes some through all steps.
#pragma once

#include "bfloat16.h"
#include "rounded.h"
#include "rows.h"

namespace accelnet {

enum Cell : int64_t { kSimple, kLstm, kGru };

constexpr int64_t num_gates(int64_t cell) { return cell == kSimple ? 1 : cell == kLstm ? 4 : 3; }
// Arrays [steps, batch, hidden] that the backward pass wants besides the state before each step.
constexpr int64_t num_saved(int64_t cell) { return cell == kSimple ? 1 : cell == kLstm ? 5 : 4; }

inline Vec load_part(const float* from, int64_t count) {
  if (count == kLanes) return load(from);
  float all[kLanes] = {};
  std::memcpy(all, from, count * sizeof(float));
  return load(all);
}
inline void store_part(float* to, Vec value, int64_t count) {
  if (count == kLanes) {
    store(to, value);
  } else {
    float all[kLanes];
    store(all, value);
    std::memcpy(to, all, count * sizeof(float));
  }
}

// x P(x^2) / Q(x^2) between -9 and 9, fitted by weighted least squares; within 3 units in the last place of tanh(x) in
// float32, and NaN where x is. What its rounding leaves within those 3 units of 1 is 1, so that large x reach it.
// With exp, the cells of an LSTM took twice as long.
inline Vec hyperbolic_tangent(Vec x) {
  const Vec bound = splat(9.0f), one = splat(1.0f), nearly = splat(0.9999998f);
  x = x > bound ? bound : x;
  x = x < -bound ? -bound : x;
  const Vec z = x * x;
  Vec p = z * -8.488482647e-14f + 5.277867089e-11f;
  p = p * z - 2.022507021e-08f;
  p = p * z + 1.115427225e-05f;
  p = p * z + 3.103952880e-03f;
  p = p * z + 1.308400714e-01f;
  p = p * z + 9.999999934e-01f;
  Vec q = z * 2.546140305e-04f + 2.449516520e-02f;
  q = q * z + 4.641733424e-01f;
  q = q * z + 1.0f;
  const Vec value = x * p / q;
  return value > nearly ? one : value < -nearly ? -one : value;
}

// Within 2e-7.
inline Vec sigmoid(Vec x) { return 0.5f * hyperbolic_tangent(0.5f * x) + 0.5f; }

// One layer over all steps; arrays are [members, steps, batch, ...] or, where members share one, have one of it.
struct Layer {
  int64_t cell, reverse, members, steps, batch, hidden;
  int64_t gates() const { return num_gates(cell) * hidden; }
};

struct Array {
  const float* data = nullptr;
  int64_t step = 0;  // between members
  const float* of(int64_t member, int64_t row, int64_t width) const { return data + member * step + row * width; }
};

// What the steps' inputs come to: an array [steps, batch, gates], or with tokens [steps, batch] the rows of a table
// [symbols, gates], NaN where it does not have them.
struct Inputs {
  Array array;
  int64_t symbols = 0;
  const int32_t* tokens = nullptr;
  int64_t step = 0;  // of tokens, between members
  std::vector<float> nothing{};

  const float* of(int64_t member, int64_t row, int64_t width) const {
    if (tokens == nullptr) return array.of(member, row, width);
    const int64_t symbol = row_of(tokens[member * step + row], symbols);
    return symbol < 0 ? nothing.data() : array.of(member, symbol, width);
  }
};

struct Valid {
  const bool* data = nullptr;
  int64_t step = 0;
  bool of(int64_t member, int64_t row) const { return data == nullptr || data[member * step + row]; }
};

// Panels of a matrix [depth, columns] with elements at depth * row + column * stride.
inline Memory<float> panels_of(Array matrix, int64_t matrices, int64_t depth, int64_t columns, int64_t row,
                               int64_t stride) {
  const int64_t panels = ceil_div(columns, kColumns);
  Memory<float> packed(matrices * panels * depth * kColumns);
  for (int64_t m = 0; m < matrices; ++m) {
    for (int64_t p = 0; p < panels; ++p) {
      float* to = packed.data() + (m * panels + p) * depth * kColumns;
      const float* from = matrix.of(m, 0, 0) + p * kColumns * stride;
      const int64_t width = std::min<int64_t>(kColumns, columns - p * kColumns);
      if (stride == 1) {
        pack_panel(from, row, depth, width, to);
      } else {
        for (int64_t n = 0; n < width; ++n) {
          for (int64_t k = 0; k < depth; ++k) to[k * kColumns + n] = from[k * row + n * stride];
        }
      }
    }
  }
  return packed;
}

// out[row] (+)= rows[row] times the matrix of the panels, for a few rows.
template <class Operands>
void multiply(int64_t num_rows, const float* const* rows, const int32_t* offsets, int64_t depth,
                     const float* panels, int64_t columns, float* const* out, bool accumulate) {
  const int64_t tiles = ceil_div(num_rows, kRows);
  for (int64_t k = 0; k < depth; k += kDepth) {
    for (int64_t p = 0; p * kColumns < columns; ++p) {
      if (num_rows == 1 && (p + kWide) * kColumns <= columns) {
        product_row<Operands>(rows[0], offsets + k, std::min(kDepth, depth - k), panels + (p * depth + k) * kColumns,
                    depth * kColumns, out[0] + p * kColumns, accumulate || k > 0);
        p += kWide - 1;
        continue;
      }
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t begin = num_rows * tile / tiles, end = num_rows * (tile + 1) / tiles;
        float* results[kRows];
        for (int64_t m = begin; m < end; ++m) results[m - begin] = out[m] + p * kColumns;
        product<Operands>(end - begin, rows + begin, offsets + k, std::min(kDepth, depth - k),
                          panels + (p * depth + k) * kColumns, kColumns, results,
                          std::min<int64_t>(kColumns, columns - p * kColumns), accumulate || k > 0);
      }
    }
  }
}

// Calls function(member, first sequence, number of sequences) on all threads.
template <typename Pool, typename F>
void over_sequences(Pool& pool, const Layer& layer, const F& function) {
  const int64_t wanted = std::max<int64_t>(1, ceil_div(pool.num_threads(), layer.members));
  const int64_t rows = std::min<int64_t>(ceil_div(layer.batch, wanted), 64), blocks = ceil_div(layer.batch, rows);
  parallel_for(pool, layer.members * blocks, [&](int64_t task) {
    const int64_t first = task % blocks * rows;
    function(task / blocks, first, std::min(rows, layer.batch - first));
  });
}

// The product of a few rows with the columns [from, from + width) of a kernel [hidden, gates], or of its transpose:
// out[row] (+)= it.
struct FloatKernel {
  int64_t depth, step;
  Memory<float> own;
  const float* panels;
  std::vector<int32_t> offsets;

  // A kernel that is prepared is not transposed.
  FloatKernel(const Layer& layer, Weights kernel, bool transposed = false)
      : depth(transposed ? layer.gates() : layer.hidden), step(kernel.step), panels(kernel.values),
        offsets(multiples(depth, 1)) {
    if (kernel.prepared) return;
    own = panels_of({kernel.values, kernel.step}, kernel.step ? layer.members : 1, depth,
                    transposed ? layer.hidden : layer.gates(), transposed ? 1 : layer.gates(),
                    transposed ? layer.gates() : 1);
    panels = own.data();
    step = kernel.step ? own.size() / layer.members : 0;
  }
  static constexpr int64_t columns() { return kColumns; }
  static constexpr int64_t least_shared() { return 128; }
  void multiply(int64_t member, int64_t count, const float* const* rows, int64_t from, int64_t width, float* const* out,
                bool accumulate) const {
    accelnet::multiply<Floats>(count, rows, offsets.data(), depth, panels + member * step + from * depth, width, out,
                               accumulate);
  }
};

#if defined(ACCELNET_BFLOAT16)
// The same in bfloat16: rows and kernel are rounded.
struct Bfloat16Kernel {
  int64_t depth, pairs, step;
  Memory<float> panels;
  std::vector<int32_t> offsets;

  Bfloat16Kernel(const Layer& layer, Array kernel, bool transposed = false)
      : depth(transposed ? layer.gates() : layer.hidden), pairs(ceil_div(depth, 2)), offsets(multiples(pairs, 1)) {
    const int64_t matrices = kernel.step ? layer.members : 1, width = transposed ? layer.hidden : layer.gates();
    step = ceil_div(width, kColumns) * pairs * kColumns;
    panels.resize(matrices * step);
    for (int64_t m = 0; m < matrices; ++m) {
      const Right matrix{kernel.of(m, 0, 0), depth, width, transposed};
      for (int64_t p = 0; p * kColumns < width; ++p) {
        matrix.pack(0, pairs, p * kColumns, panels.data() + m * step + p * pairs * kColumns);
      }
    }
    step = kernel.step ? step : 0;
  }
  static constexpr int64_t columns() { return kColumns; }
  static constexpr int64_t least_shared() { return 128; }
  void multiply(int64_t member, int64_t count, const float* const* rows, int64_t from, int64_t width, float* const* out,
                bool accumulate) const {
    float* of = scratch(1, count * pairs);
    const float** pairs_of = scratch<const float*>(1, count);
    for (int64_t row = 0; row < count; ++row) {
      pairs_of[row] = of + row * pairs;
      store_row(rows[row], depth, of + row * pairs);
    }
    accelnet::multiply<Pairs>(count, pairs_of, offsets.data(), pairs, panels.data() + member * step + from * pairs,
                              width, out, accumulate);
  }
};
#endif

// The same of a kernel of 8 or 4 bits: every state is rounded.
struct RoundedKernel {
  int64_t hidden, step, scale_step;
  Packed weights;
  MultiplyRounded product;
  std::vector<int32_t> offsets;

  static constexpr int64_t columns() { return kPanel; }
  static constexpr int64_t least_shared() { return 384; }
  void multiply(int64_t member, int64_t count, const float* const* states, int64_t from, int64_t width, float* const* out,
                bool accumulate) const {
    RoundedRows rounded(count, weights.quads, 1);
    for (int64_t row = 0; row < count; ++row) rounded.set(row, states[row], hidden);
    Packed here = weights;
    here.data += member * step + from / kPanel * weights.panel_bytes();
    here.scale += member * scale_step + from;
    here.columns = width;
    product(count, rounded.view(), offsets.data(), here, 0, ceil_div(width, kPanel), nullptr, accumulate, false, out);
  }
};

// projected inputs, kernel [hidden, gates], bias [gates] or nothing, first state [batch, hidden];
// results: hiddens [steps, batch, hidden], the last state, and unless `before` is null the state before each step
// and what the cell saves.
template <typename Pool, typename Kernel>
void recur(Pool& pool, const Layer& layer, Inputs projected, const Kernel& kernel, Array bias, Array first,
           Array first_memory, Valid valid, float* hiddens, float* last, float* last_memory, float* before,
           float* const* saved) {
  const int64_t hidden = layer.hidden, gates = layer.gates(), rows_of_all = layer.steps * layer.batch;
  if (projected.tokens) projected.nothing.assign(gates, std::nanf(""));
  // A step of some sequences, for the hidden units [from, until): whole panels of every gate, or all.
  const auto advance = [&](int64_t index, int64_t member, int64_t begin, int64_t count, int64_t from, int64_t until) {
    const int64_t step = layer.reverse ? layer.steps - 1 - index : index;
    const int64_t before_step = layer.reverse ? step + 1 : step - 1;
    const float** state = scratch<const float*>(0, count);
    float** sums = scratch<float*>(0, count);
    float* sums_memory = scratch(0, count * gates + kLanes);
    for (int64_t row = 0; row < count; ++row) {
      state[row] = index == 0 ? first.of(member, begin + row, hidden)
                              : hiddens + (member * rows_of_all + before_step * layer.batch + begin + row) * hidden;
      sums[row] = sums_memory + row * gates;
      // The reset gate of a GRU multiplies the recurrent product alone.
      const float* start = layer.cell != kGru ? projected.of(member, step * layer.batch + begin + row, gates)
                           : bias.data        ? bias.of(member, 0, 0)
                                              : nullptr;
      for (int64_t gate = 0; start && gate < gates; gate += hidden) {
        std::memcpy(sums[row] + gate + from, start + gate + from, (until - from) * sizeof(float));
      }
    }
    const bool adds = layer.cell != kGru || bias.data, all = until - from == hidden;
    for (int64_t gate = 0; gate < (all ? 1 : gates); gate += hidden) {
      float** into = scratch<float*>(1, count);
      for (int64_t row = 0; row < count; ++row) into[row] = sums[row] + gate + from;
      kernel.multiply(member, count, state, gate + from, all ? gates : until - from, into, adds);
    }
    for (int64_t row = 0; row < count; ++row) {
      const int64_t place = step * layer.batch + begin + row;
      const float *input = projected.of(member, place, gates), *sum = sums[row], *old = state[row];
      const int64_t at = (member * rows_of_all + place) * hidden;
      float* to = hiddens + at;
      float* memory = last_memory + (member * layer.batch + begin + row) * hidden;
      const bool is_valid = valid.of(member, place);
      for (int64_t j = from; j < until; j += kLanes) {
        const int64_t width = std::min<int64_t>(kLanes, until - j);
        const auto gate = [&](const float* of, int64_t g) { return load_part(of + g * hidden + j, width); };
        const auto keep = [&](int64_t g, Vec value) {
          if (before) store_part(saved[g] + at + j, value, width);
        };
        const Vec previous = load_part(old + j, width);
        Vec next;
        if (layer.cell == kSimple) {
          next = hyperbolic_tangent(gate(sum, 0));
          keep(0, next);
        } else if (layer.cell == kLstm) {
          const Vec i = sigmoid(gate(sum, 0)), f = sigmoid(gate(sum, 1)), g = hyperbolic_tangent(gate(sum, 2)),
                    o = sigmoid(gate(sum, 3)), remembered = load_part(memory + j, width);
          const Vec updated = f * remembered + i * g;
          next = o * hyperbolic_tangent(updated);
          if (is_valid) store_part(memory + j, updated, width);
          keep(0, i), keep(1, f), keep(2, g), keep(3, o), keep(4, remembered);
        } else {
          const Vec r = sigmoid(gate(input, 0) + gate(sum, 0)), z = sigmoid(gate(input, 1) + gate(sum, 1)),
                    recurrent = gate(sum, 2), n = hyperbolic_tangent(gate(input, 2) + r * recurrent);
          next = (1.0f - z) * n + z * previous;
          keep(0, r), keep(1, z), keep(2, n), keep(3, recurrent);
        }
        store_part(to + j, is_valid ? next : previous, width);
        if (before) store_part(before + at + j, previous, width);
      }
    }
  };
  const int64_t sequences = layer.members * layer.batch, threads = pool.num_threads();
  if (layer.cell == kLstm) {
    for (int64_t i = 0; i < sequences; ++i) {
      std::memcpy(last_memory + i * hidden, first_memory.of(i / layer.batch, i % layer.batch, hidden),
                  hidden * sizeof(float));
    }
  }
  if (sequences == 1 && hidden % (threads * kernel.columns()) == 0 && hidden >= kernel.least_shared()) {
    // There is one sequence: threads share its hidden units, and meet after every step.
    const int64_t share = hidden / threads;
    parallel_rounds(pool, layer.steps, threads,
                    [&](int64_t index, int64_t slice) { advance(index, 0, 0, 1, slice * share, (slice + 1) * share); });
  } else {
    over_sequences(pool, layer, [&](int64_t member, int64_t begin, int64_t count) {
      for (int64_t index = 0; index < layer.steps; ++index) advance(index, member, begin, count, 0, hidden);
    });
  }
  const int64_t end = layer.reverse ? 0 : layer.steps - 1;
  for (int64_t member = 0; member < layer.members; ++member) {
    std::memcpy(last + member * layer.batch * hidden, hiddens + (member * rows_of_all + end * layer.batch) * hidden,
                layer.batch * hidden * sizeof(float));
  }
}

// The gradient of `recur`, without that of the kernel: dprojected and, for a GRU, drecurrent [steps, batch, gates], and
// that of the first state.
template <typename Pool, typename Kernel>
void recur_backward(Pool& pool, const Layer& layer, Array before, const Array* saved, const Kernel& transposed,
                    Array dhiddens, Array dlast, Array dlast_memory, Valid valid, float* dprojected, float* drecurrent, float* dfirst,
                    float* dfirst_memory) {
  const int64_t hidden = layer.hidden, gates = layer.gates(), rows_of_all = layer.steps * layer.batch;
  over_sequences(pool, layer, [&](int64_t member, int64_t begin, int64_t count) {
    std::vector<const float*> sums(count);
    std::vector<float*> dstate(count), dmemory(count);
    for (int64_t row = 0; row < count; ++row) {
      const int64_t at = (member * layer.batch + begin + row) * hidden;
      dstate[row] = dfirst + at;
      std::memcpy(dstate[row], dlast.of(member, begin + row, hidden), hidden * sizeof(float));
      if (layer.cell == kLstm) {
        dmemory[row] = dfirst_memory + at;
        std::memcpy(dmemory[row], dlast_memory.of(member, begin + row, hidden), hidden * sizeof(float));
      }
    }
    for (int64_t index = 0; index < layer.steps; ++index) {
      const int64_t step = layer.reverse ? index : layer.steps - 1 - index;
      for (int64_t row = 0; row < count; ++row) {
        const int64_t place = step * layer.batch + begin + row, at = (member * rows_of_all + place) * gates;
        const float* of_output = dhiddens.of(member, place, hidden);
        float *to = dprojected + at, *to_recurrent = layer.cell == kGru ? drecurrent + at : to;
        sums[row] = to_recurrent;
        if (!valid.of(member, place)) {
          // The state went on as it was, and so does its gradient: zeros times the kernel are added to it below.
          std::fill(to, to + gates, 0.0f);
          std::fill(to_recurrent, to_recurrent + gates, 0.0f);
          for (int64_t j = 0; j < hidden; ++j) dstate[row][j] += of_output[j];
          continue;
        }
        for (int64_t j = 0; j < hidden; j += kLanes) {
          const int64_t width = std::min<int64_t>(kLanes, hidden - j);
          const auto kept = [&](int64_t g) { return load_part(saved[g].of(member, place, hidden) + j, width); };
          const auto put = [&](float* into, int64_t g, Vec value) { store_part(into + g * hidden + j, value, width); };
          const Vec d = load_part(dstate[row] + j, width) + load_part(of_output + j, width);
          Vec direct{};  // what reaches the state before not through the kernel
          if (layer.cell == kSimple) {
            const Vec next = kept(0);
            put(to, 0, d * (1.0f - next * next));
          } else if (layer.cell == kLstm) {
            const Vec i = kept(0), f = kept(1), g = kept(2), o = kept(3), memory = kept(4);
            const Vec squashed = hyperbolic_tangent(f * memory + i * g);
            const Vec dm = load_part(dmemory[row] + j, width) + d * o * (1.0f - squashed * squashed);
            put(to, 0, dm * g * i * (1.0f - i));
            put(to, 1, dm * memory * f * (1.0f - f));
            put(to, 2, dm * i * (1.0f - g * g));
            put(to, 3, d * squashed * o * (1.0f - o));
            store_part(dmemory[row] + j, dm * f, width);
          } else {
            const Vec r = kept(0), z = kept(1), n = kept(2), recurrent = kept(3);
            const Vec previous = load_part(before.of(member, place, hidden) + j, width);
            const Vec dn = d * (1.0f - z) * (1.0f - n * n), dz = d * (previous - n) * z * (1.0f - z),
                      dr = dn * recurrent * r * (1.0f - r);
            put(to, 0, dr), put(to, 1, dz), put(to, 2, dn);
            put(to_recurrent, 0, dr), put(to_recurrent, 1, dz), put(to_recurrent, 2, dn * r);
            direct = d * z;
          }
          store_part(dstate[row] + j, direct, width);
        }
      }
      transposed.multiply(member, count, sums.data(), 0, hidden, dstate.data(), true);
    }
  });
}

}  // namespace accelnet
