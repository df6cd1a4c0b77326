// Threads, scratch memory, vectors, and the one small matrix product that every kernel is made of.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "threads.h"

namespace accelnet {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kRows = 12;
#elif defined(__AVX__)
constexpr int kLanes = 8, kRows = 6;
#else
constexpr int kLanes = 4, kRows = 6;
#endif
// Columns of a product's tile: with kRows rows of two vectors the sums fill the registers.
constexpr int kColumns = 2 * kLanes;

typedef float Vec __attribute__((vector_size(kLanes * sizeof(float)), aligned(sizeof(float)), may_alias));

inline Vec load(const float* from) { return *reinterpret_cast<const Vec*>(from); }
inline void store(float* to, Vec value) { *reinterpret_cast<Vec*>(to) = value; }
// Subtracting zero changes no value, and compilers make one broadcast of it.
inline Vec splat(float value) { return value - Vec{}; }

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

constexpr int kSlots = 3;

inline void raise(std::atomic<int64_t>& most, int64_t value) {
  int64_t seen = most.load();
  while (value > seen && !most.compare_exchange_weak(seen, value)) {
  }
}

// Bytes that the kernels have beside their operands and results: of calls, now and the most so far, and of a thread the
// most so far, by slot. Which threads came to take part is chance, so all are taken to have had as much.
struct Usage {
  std::atomic<int64_t> now{0}, most{0}, threads{1}, slots[kSlots]{};

  void change(int64_t bytes) { raise(most, now.fetch_add(bytes) + bytes); }
  int64_t total() const {
    int64_t of_thread = 0;
    for (const auto& slot : slots) of_thread += slot.load();
    return most.load() + threads.load() * of_thread;
  }
};

inline Usage& usage() {
  static Usage bytes;
  return bytes;
}

// Calls function(0), ..., function(count - 1) on the threads of the pool and on this one. Never waits for a thread
// that has not started: this one takes what is left, so a busy pool cannot lock it up.
template <typename Pool, typename F>
void parallel_for(Pool& pool, int64_t count, const F& function) {
  raise(usage().threads, pool.num_threads());
  const int64_t threads = std::min<int64_t>(pool.num_threads(), count);
  if (threads <= 1) {
    for (int64_t i = 0; i < count; ++i) function(i);
    return;
  }
  if (pool.crew) return pool.crew->run(count, function);
  struct Progress {
    std::atomic<int64_t> next{0}, done{0};
  };
  auto progress = std::make_shared<Progress>();
  const auto work = [progress, count, &function] {
    for (int64_t i; (i = progress->next.fetch_add(1)) < count;) {
      function(i);
      progress->done.fetch_add(1, std::memory_order_release);
    }
  };
  for (int64_t i = 1; i < threads; ++i) pool.pool->Schedule(std::function<void()>(work));
  work();
  for (int spins = 0; progress->done.load(std::memory_order_acquire) < count; ++spins) {
    if (spins > 1000) std::this_thread::yield();
  }
}

// Calls function(round, i) for every i below `count` of every round, those of a round after all of the round before.
template <typename Pool, typename F>
void parallel_rounds(Pool& pool, int64_t rounds, int64_t count, const F& function) {
  // Who takes a task waits for tasks that others took before, so the earliest of them is never waiting.
  std::atomic<int64_t> done{0};
  parallel_for(pool, rounds * count, [&](int64_t task) {
    const int64_t before = task / count * count;
    for (int spins = 0; done.load(std::memory_order_acquire) < before; ++spins) {
      if (spins > 1000) std::this_thread::yield();
    }
    function(task / count, task % count);
    done.fetch_add(1, std::memory_order_release);
  });
}

// As `parallel_for`, by this thread alone where all calls together are of few operations.
template <typename Pool, typename F>
void share_out(Pool& pool, int64_t operations, int64_t count, const F& function) {
  if (pool.worth(operations) > 1) return parallel_for(pool, count, function);
  raise(usage().threads, 1);
  for (int64_t i = 0; i < count; ++i) function(i);
}

// What is done to finished results: a bias [features] is added, or nothing is, and what is negative becomes 0.
struct Finish {
  const float* bias = nullptr;
  bool relu = false;

  Vec operator()(Vec value, int64_t feature) const {
    if (bias != nullptr) value += load(bias + feature);
    return relu ? (value < 0.0f ? Vec{} : value) : value;
  }
  // Of `count` rows of features [begin, end), `pitch` apart. Inlined into each tile, it would triple what compiling takes.
  [[gnu::noinline]] void rows(float* rows, int64_t count, int64_t pitch, int64_t begin, int64_t end) const {
    if (bias == nullptr && !relu) return;
    for (int64_t row = 0; row < count; ++row, rows += pitch) {
      int64_t i = begin;
      for (; i + kLanes <= end; i += kLanes) store(rows + i, (*this)(load(rows + i), i));
      for (; i < end; ++i) {
        const float value = rows[i] + (bias == nullptr ? 0.0f : bias[i]);
        rows[i] = relu && value < 0 ? 0 : value;
      }
    }
  }
};

// Weights of a product, as they came or as `prepare` in kernels.cc has laid them out once for all calls. Members of a
// population are `step` apart, 0 where they share them.
struct Weights {
  const float* values;
  int64_t step;
  bool prepared;
};

template <typename T>
struct CountingAllocator : std::allocator<T> {
  template <typename U>
  struct rebind {
    using other = CountingAllocator<U>;
  };

  T* allocate(size_t count) {
    usage().change(count * sizeof(T));
    return std::allocator<T>::allocate(count);
  }
  void deallocate(T* memory, size_t count) {
    usage().change(-static_cast<int64_t>(count * sizeof(T)));
    std::allocator<T>::deallocate(memory, count);
  }
};

// Memory of one call, for all its threads.
template <typename T>
using Memory = std::vector<T, CountingAllocator<T>>;

// Memory of this thread, kept for the next call: slots are independent.
template <typename T = float>
T* scratch(int slot, int64_t count) {
  static thread_local std::vector<std::vector<T>> slots(kSlots);
  auto& memory = slots[slot];
  if (static_cast<int64_t>(memory.size()) < count) {
    memory.resize(count);
    raise(usage().slots[slot], count * sizeof(T));
  }
  return memory.data();
}

// Keeps a vector in a register: of few rows, compilers read the columns anew for each.
inline void hold([[maybe_unused]] Vec& value) {
#if defined(__x86_64__)
  asm("" : "+v"(value));
#elif defined(__aarch64__)
  asm("" : "+w"(value));
#endif
}

// What a product multiplies: one number of a row with one of each column. `bfloat16.h` has another.
struct Floats {
  static Vec value(const float* from) { return splat(*from); }
  static Vec add(Vec sum, Vec value, Vec column) { return sum + value * column; }
};

// out[m][n] (+)= sum_k rows[m][offsets[k]] * columns[k * stride + n]. The rows may lie anywhere: pixels of an image
// whose taps are the offsets, or channels whose pixels are. The columns are features of the finish from `feature` on.
template <class Operands, int M, int V>
void product_tile(const float* const* rows, const int32_t* offsets, int64_t depth, const float* columns,
                  int64_t stride, float* const* out, int64_t num_columns, bool accumulate, const Finish& finish,
                  int64_t feature) {
  Vec sum[M][V];
  const bool whole = num_columns == V * kLanes;
  const float* row[M];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
    row[m] = rows[m];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) sum[m][v] = accumulate && whole ? load(out[m] + v * kLanes) : Vec{};
  }
  for (int64_t k = 0; k < depth; ++k, columns += stride) {
    const int64_t offset = offsets[k];
    Vec column[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) hold(column[v] = load(columns + v * kLanes));
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const Vec value = Operands::value(row[m] + offset);
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) sum[m][v] = Operands::add(sum[m][v], value, column[v]);
    }
  }
  if (whole) {
    if (finish.bias != nullptr) {
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        const Vec bias = load(finish.bias + feature + v * kLanes);
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) sum[m][v] += bias;
      }
    }
    const Finish rest{nullptr, finish.relu};
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) store(out[m] + v * kLanes, rest(sum[m][v], 0));
    }
    return;
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
    float parts[V * kLanes];
    for (int v = 0; v < V; ++v) store(parts + v * kLanes, sum[m][v]);
    for (int64_t n = 0; n < num_columns; ++n) out[m][n] = accumulate ? out[m][n] + parts[n] : parts[n];
    finish.rows(out[m] - feature, 1, 0, feature, feature + num_columns);
  }
}

using TileFunction = decltype(&product_tile<Floats, 1, 1>);

template <class Operands, int V, int... M>
constexpr std::array<TileFunction, sizeof...(M)> tile_functions(std::integer_sequence<int, M...>) {
  return {&product_tile<Operands, M + 1, V>...};
}

// The tile function's arguments for any number of rows up to kRows and of columns up to kColumns.
template <class Operands = Floats>
void product(int num_rows, const float* const* rows, const int32_t* offsets, int64_t depth, const float* columns,
             int64_t stride, float* const* out, int64_t num_columns, bool accumulate, const Finish& finish = {},
             int64_t feature = 0) {
  static constexpr auto one = tile_functions<Operands, 1>(std::make_integer_sequence<int, kRows>());
  static constexpr auto two = tile_functions<Operands, 2>(std::make_integer_sequence<int, kRows>());
  (num_columns <= kLanes ? one : two)[num_rows - 1](rows, offsets, depth, columns, stride, out, num_columns,
                                                    accumulate, finish, feature);
}

// Calls function(first, number) for tiles of `count` rows, as even as can be: in one of one row or two, a column's sum
// waits for the one before.
template <typename F>
void each_tile(int64_t count, const F& function) {
  if (count <= 0) return;
  const int64_t tiles = ceil_div(count, kRows), least = count / tiles;
  int64_t larger = count % tiles;
  for (int64_t first = 0; first < count; --larger) {
    const int number = least + (larger > 0);
    function(first, number);
    first += number;
  }
}

// One row times several panels at once, `panel_step` apart: with one panel, every sum waits for the one before.
constexpr int kWide = 4;
template <class Operands>
void product_row(const float* row, const int32_t* offsets, int64_t depth, const float* panels, int64_t panel_step,
                 float* out, bool accumulate, const Finish& finish = {}, int64_t feature = 0) {
  Vec sum[kWide][2];
#pragma GCC unroll 4
  for (int p = 0; p < kWide; ++p) {
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) sum[p][v] = accumulate ? load(out + p * kColumns + v * kLanes) : Vec{};
  }
  for (int64_t k = 0; k < depth; ++k, panels += kColumns) {
    const Vec value = Operands::value(row + offsets[k]);
#pragma GCC unroll 4
    for (int p = 0; p < kWide; ++p) {
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        sum[p][v] = Operands::add(sum[p][v], value, load(panels + p * panel_step + v * kLanes));
      }
    }
  }
#pragma GCC unroll 4
  for (int p = 0; p < kWide; ++p) {
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) store(out + p * kColumns + v * kLanes, sum[p][v]);
  }
  finish.rows(out - feature, 1, 0, feature, feature + kWide * kColumns);
}

// Copies `depth` rows of `width` <= kColumns numbers, `stride` apart, side by side, with zeros at their right.
inline void pack_panel(const float* matrix, int64_t stride, int64_t depth, int64_t width, float* panel) {
  for (int64_t k = 0; k < depth; ++k, panel += kColumns, matrix += stride) {
    if (width == kColumns) {
      store(panel, load(matrix));
      store(panel + kLanes, load(matrix + kLanes));
    } else {
      std::memcpy(panel, matrix, width * sizeof(float));
      std::fill(panel + width, panel + kColumns, 0.0f);
    }
  }
}

// 0, step, 2 * step, ...
inline std::vector<int32_t> multiples(int64_t count, int64_t step) {
  std::vector<int32_t> offsets(count);
  for (int64_t i = 0; i < count; ++i) offsets[i] = i * step;
  return offsets;
}

// Depth of a product whose columns stay in the first cache.
constexpr int64_t kDepth = 384;

// Adds up [parts, elements] into out, in their order.
template <typename Pool>
void add_parts(Pool& pool, const float* partial, int64_t parts, int64_t elements, float* out) {
  constexpr int64_t block = 4096;
  parallel_for(pool, ceil_div(elements, block), [&](int64_t task) {
    const int64_t begin = task * block, end = std::min(elements, begin + block);
    std::memcpy(out + begin, partial + begin, (end - begin) * sizeof(float));
    for (int64_t part = 1; part < parts; ++part) {
      for (int64_t i = begin; i < end; ++i) out[i] += partial[part * elements + i];
    }
  });
}

// Into how many sums that threads make apart a sum over `tasks` is cut: by its size alone, so that the number of
// threads changes no bit, and at most 32 MiB.
inline int64_t num_parts(int64_t tasks, int64_t elements) {
  const int64_t most = (int64_t{32} << 20) / std::max<int64_t>(1, elements * static_cast<int64_t>(sizeof(float)));
  return std::max<int64_t>(1, std::min({tasks, most, int64_t{16}}));
}

}  // namespace accelnet
