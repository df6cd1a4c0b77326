// Products of whole matrices, of dense layers say, whose operands lie as they are or transposed.
#pragma once

#include "product.h"

namespace accelnet {

// out [m, n] = a [m, k], or transposed [k, m], times b [k, n], or transposed [n, k].
struct Matrices {
  int64_t members, m, n, k;
  bool a_transposed, b_transposed;
};

// Rows of a task, whose numbers stay in the second cache while panel after panel meets them.
constexpr int64_t kTaskRows = 128;

// Columns [p * kColumns, ...) of rows [first, first + depth) of b, side by side.
inline void pack_columns(const Matrices& s, const float* b, int64_t first, int64_t depth, int64_t column,
                         int64_t width, float* panel) {
  if (!s.b_transposed) {
    pack_panel(b + first * s.n + column, s.n, depth, width, panel);
    return;
  }
  if (width < kColumns) std::fill(panel, panel + depth * kColumns, 0.0f);
  for (int64_t j = 0; j < width; ++j) {
    const float* from = b + (column + j) * s.k + first;
    for (int64_t k = 0; k < depth; ++k) panel[k * kColumns + j] = from[k];
  }
}

// Rows [row, row + count) of a transposed matrix, depths [first, first + depth): tiles of kRows rows, [depth, kRows].
inline void pack_rows(const Matrices& s, const float* a, int64_t row, int64_t count, int64_t first, int64_t depth,
                      float* packed) {
  for (int64_t k = 0; k < depth; ++k) {
    const float* from = a + (first + k) * s.m + row;
    float* to = packed + k * kRows;
    int64_t m = 0;
    for (; m + kRows <= count; m += kRows, to += depth * kRows) {
      for (int64_t i = 0; i < kRows; ++i) to[i] = from[m + i];
    }
    for (int64_t i = 0; m + i < count; ++i) to[i] = from[m + i];
  }
}

// Rows of a task, of `count` in all: whole tiles, so that there may be fewer tasks than there are times kTaskRows rows.
inline int64_t rows_of_block(int64_t count) {
  const int64_t blocks = std::max<int64_t>(1, ceil_div(count, kTaskRows));
  return std::max<int64_t>(kRows, round_up(ceil_div(count, blocks), kRows));
}

// Of so few rows reading the columns takes longest.
constexpr int64_t kFewRows = 4;

// Into how many sums the products over a great depth are cut where there are few of them; by the size alone.
inline int64_t depth_parts(const Matrices& s) {
  const bool is_long = s.k >= 2048 && s.m > kFewRows && s.m * s.n <= kTaskRows * kTaskRows;
  return is_long ? num_parts(s.k / 1024, s.m * s.n * s.members) : 1;
}

// Numbers of a right matrix when it is prepared: its columns in panels side by side, [panels, k, kColumns].
inline int64_t prepared_size(const Matrices& s) { return ceil_div(s.n, kColumns) * s.k * kColumns; }

inline void prepare_matrix(const Matrices& s, const float* b, float* to) {
  for (int64_t column = 0; column < s.n; column += kColumns, to += s.k * kColumns) {
    pack_columns(s, b, 0, s.k, column, std::min<int64_t>(kColumns, s.n - column), to);
  }
}

template <typename Pool>
void multiply_matrices(Pool& pool, const Matrices& s, const float* a, int64_t a_step, Weights b, float* out,
                       const Finish& finish = {}) {
  // Read where it lies where that is not far apart, or where it is read about once.
  const bool in_place = !s.a_transposed || s.m <= 64 || s.n <= 2 * kColumns;
  const int64_t parts = depth_parts(s), elements = s.m * s.n;
  const int64_t part_depth = ceil_div(s.k, parts), most = s.a_transposed && in_place ? 128 : kDepth;
  const int64_t depth = ceil_div(part_depth, ceil_div(part_depth, most));
  const int64_t panels = ceil_div(s.n, kColumns);
  const int64_t block = rows_of_block(s.m), blocks = ceil_div(s.m, block);
  const int64_t operations = 2 * s.members * std::max(s.m, kFewRows) * s.n * s.k;
  const int64_t threads = pool.worth(operations);
  // As many tasks as make threads end together, of panels side by side; of a few rows one per thread, so that each finds
  // its columns in its own cache the next time.
  const int64_t wanted = threads == 1 ? 1 : s.m <= kFewRows ? threads : ceil_div(4 * threads, s.members * parts * blocks);
  const int64_t share = ceil_div(panels, std::min(panels, wanted)), shares = ceil_div(panels, share);
  const std::vector<int32_t> offsets = multiples(depth, !s.a_transposed ? 1 : in_place ? s.m : kRows);
  Memory<float> partial(parts > 1 ? s.members * parts * elements : 0);
  const auto task = [&](int64_t number) {
    const int64_t product_number = number / (blocks * shares), member = product_number / parts;
    const int64_t row = number / shares % blocks * block, rows_here = std::min(block, s.m - row);
    const int64_t begin = number % shares * share, first_of_part = product_number % parts * part_depth;
    const float *left = a + member * a_step, *right = b.values + member * b.step;
    float* to = (parts > 1 ? partial.data() : out) + product_number * elements;
    float *panel = scratch(0, depth * kColumns), *packed = scratch(1, (block + kRows) * depth);
    const int64_t end = std::min(first_of_part + part_depth, s.k);
    for (int64_t first = first_of_part; first < end; first += depth) {
      const int64_t here = std::min(depth, end - first);
      const Finish now = parts == 1 && first + here == end ? finish : Finish{};
      if (!in_place) pack_rows(s, left, row, rows_here, first, here, packed);
      for (int64_t p = begin; p < std::min(begin + share, panels); ++p) {
        const int64_t width = std::min<int64_t>(kColumns, s.n - p * kColumns);
        // For a few rows, copying the columns would take longer than multiplying by them.
        const bool copies = !b.prepared && (s.b_transposed || width < kColumns || s.m > 2 * kRows);
        if (copies) pack_columns(s, right, first, here, p * kColumns, width, panel);
        const float* columns = copies       ? panel
                               : b.prepared ? right + (p * s.k + first) * kColumns
                                            : right + first * s.n + p * kColumns;
        if (b.prepared && s.m == 1 && !s.a_transposed && p + kWide <= std::min(begin + share, s.n / kColumns)) {
          product_row<Floats>(left + first, offsets.data(), here, columns, s.k * kColumns, to + p * kColumns,
                              first > first_of_part, now, p * kColumns);
          p += kWide - 1;
          continue;
        }
        const auto tile = [&](int64_t m, int num_rows) {
          const float* rows[kRows];
          float* results[kRows];
          for (int i = 0; i < num_rows; ++i) {
            rows[i] = !in_place        ? packed + m * here + i
                      : s.a_transposed ? left + first * s.m + row + m + i
                                       : left + (row + m + i) * s.k + first;
            results[i] = to + (row + m + i) * s.n + p * kColumns;
          }
          product(num_rows, rows, offsets.data(), here, columns, copies || b.prepared ? kColumns : s.n, results, width,
                  first > first_of_part, now, p * kColumns);
        };
        if (in_place) {
          each_tile(rows_here, tile);
        } else {
          for (int64_t m = 0; m < rows_here; m += kRows) tile(m, std::min<int64_t>(kRows, rows_here - m));
        }
      }
    }
  };
  share_out(pool, operations, s.members * parts * blocks * shares, task);
  for (int64_t member = 0; parts > 1 && member < s.members; ++member) {
    add_parts(pool, partial.data() + member * parts * elements, parts, elements, out + member * elements);
    finish.rows(out + member * elements, s.m, s.n, 0, s.n);
  }
}

}  // namespace accelnet
