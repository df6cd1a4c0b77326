// Products of float32 numbers rounded to bfloat16, with sums in float32: one instruction multiplies two numbers of a row
// with two of each column.
#pragma once

#include "matrices.h"

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include <immintrin.h>

#define ACCELNET_BFLOAT16 1

namespace accelnet {

// Two depths side by side, a pair, lie where a product of float32 has one number.
struct Pairs {
  static Vec value(const float* from) {
    int32_t pair;
    std::memcpy(&pair, from, sizeof pair);
    return reinterpret_cast<Vec>(_mm512_set1_epi32(pair));
  }
  static Vec add(Vec sum, Vec value, Vec column) {
    return reinterpret_cast<Vec>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(value),
                                                  reinterpret_cast<__m512bh>(column)));
  }
};

// The first `count` <= 16 numbers, zeros behind them.
inline __m512 numbers(const float* from, int64_t count) {
  return _mm512_maskz_loadu_ps(_cvtu32_mask16((1u << count) - 1), from);
}
// Thirty-two numbers, rounded.
inline __m512i rounded(__m512 first, __m512 second) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first));
}
// The first `count` <= 32 numbers as pairs, zeros behind them.
inline __m512i row_pairs(const float* from, int64_t count) {
  return rounded(numbers(from, std::min<int64_t>(16, count)), numbers(from + 16, std::max<int64_t>(0, count - 16)));
}

// Sixteen pairs of numbers that lie `step` apart, or of a number and a zero: `count` of them, zeros behind.
inline void store_pairs(const float* from, int64_t step, bool has_second, int64_t count, float* to) {
  const __m512i from_both = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                             21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512 second = has_second ? numbers(from + step, count) : _mm512_setzero_ps();
  _mm512_storeu_si512(to, _mm512_permutexvar_epi16(from_both, rounded(numbers(from, count), second)));
}

// A row as pairs, with a zero behind it where there is one number too few.
inline void store_row(const float* from, int64_t depth, float* to) {
  for (int64_t k = 0; k < depth; k += 32) {
    const int64_t count = std::min<int64_t>(32, depth - k);
    _mm512_mask_storeu_epi32(to + k / 2, _cvtu32_mask16((1u << ceil_div(count, 2)) - 1), row_pairs(from + k, count));
  }
}

// Sixteen rows of sixteen numbers as columns.
inline void transpose(__m512i* row) {
  __m512i half[16];
  for (int i = 0; i < 16; i += 2) {
    half[i] = _mm512_unpacklo_epi32(row[i], row[i + 1]);
    half[i + 1] = _mm512_unpackhi_epi32(row[i], row[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    row[i] = _mm512_unpacklo_epi64(half[i], half[i + 2]);
    row[i + 1] = _mm512_unpackhi_epi64(half[i], half[i + 2]);
    row[i + 2] = _mm512_unpacklo_epi64(half[i + 1], half[i + 3]);
    row[i + 3] = _mm512_unpackhi_epi64(half[i + 1], half[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    half[i] = _mm512_shuffle_i32x4(row[i], row[i + 4], 0x88);
    half[i + 4] = _mm512_shuffle_i32x4(row[i], row[i + 4], 0xdd);
    half[i + 8] = _mm512_shuffle_i32x4(row[i + 8], row[i + 12], 0x88);
    half[i + 12] = _mm512_shuffle_i32x4(row[i + 8], row[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    row[i] = _mm512_shuffle_i32x4(half[i], half[i + 8], 0x88);
    row[i + 4] = _mm512_shuffle_i32x4(half[i + 4], half[i + 12], 0x88);
    row[i + 8] = _mm512_shuffle_i32x4(half[i], half[i + 8], 0xdd);
    row[i + 12] = _mm512_shuffle_i32x4(half[i + 4], half[i + 12], 0xdd);
  }
}

// The right matrix of a product, [depth, columns] or transposed.
struct Right {
  const float* data;
  int64_t depth, columns;
  bool transposed;

  // Pairs [first, first + count) of the columns [column, column + kColumns), side by side.
  void pack(int64_t first, int64_t count, int64_t column, float* panel) const {
    for (int64_t j = 0; j < kColumns; j += kLanes) {
      const int64_t here = std::clamp<int64_t>(columns - column - j, 0, kLanes);
      if (transposed) {
        pack_rows(first, count, column + j, here, panel + j);
      } else {
        for (int64_t q = first; q < first + count; ++q) {
          store_pairs(data + 2 * q * columns + column + j, columns, 2 * q + 1 < depth, here,
                      panel + (q - first) * kColumns + j);
        }
      }
    }
  }

 private:
  void pack_rows(int64_t first, int64_t count, int64_t row, int64_t rows, float* to) const {
    for (int64_t q = 0; q < count; q += kLanes) {
      const int64_t k = 2 * (first + q), pairs = std::min<int64_t>(kLanes, count - q);
      __m512i block[kLanes] = {};
      for (int64_t i = 0; i < rows; ++i) {
        block[i] = row_pairs(data + (row + i) * depth + k, std::min<int64_t>(32, depth - k));
      }
      transpose(block);
      for (int64_t i = 0; i < pairs; ++i) _mm512_storeu_si512(to + (q + i) * kColumns, block[i]);
    }
  }
};

// Pairs of `count` rows of the left matrix from `row` on: [rows, pairs], or of a transposed one [pairs, pitch].
inline void pack_left(const Matrices& s, const float* a, int64_t row, int64_t count, int64_t pitch, float* to) {
  if (!s.a_transposed) {
    for (int64_t m = 0; m < count; ++m) store_row(a + (row + m) * s.k, s.k, to + m * ceil_div(s.k, 2));
    return;
  }
  for (int64_t k = 0; k < s.k; k += 2, to += pitch) {
    for (int64_t m = 0; m < count; m += kLanes) {
      store_pairs(a + k * s.m + row + m, s.m, k + 1 < s.k, std::min<int64_t>(kLanes, count - m), to + m);
    }
  }
}

template <typename Pool>
void multiply_pairs(Pool& pool, const Matrices& s, const float* a, int64_t a_step, const float* b, int64_t b_step,
                    float* out) {
  const int64_t pairs = ceil_div(s.k, 2), depth = ceil_div(pairs, ceil_div(pairs, kDepth));
  const int64_t panels = ceil_div(s.n, kColumns), block = rows_of_block(s.m), blocks = ceil_div(s.m, block);
  const int64_t pitch = round_up(block, kLanes);
  const int64_t operations = s.members * s.m * s.n * s.k, threads = pool.worth(operations);
  const int64_t wanted = threads == 1 ? 1 : ceil_div(2 * threads, s.members * blocks);
  const int64_t share = ceil_div(panels, std::min(panels, wanted)), shares = ceil_div(panels, share);
  const std::vector<int32_t> offsets = multiples(pairs, s.a_transposed ? pitch : 1);
  const auto task = [&](int64_t number) {
    const int64_t member = number / (blocks * shares), row = number / shares % blocks * block;
    const int64_t rows_here = std::min(block, s.m - row), begin = number % shares * share;
    const Right right{b + member * b_step, s.k, s.n, s.b_transposed};
    float *panel = scratch(0, depth * kColumns), *packed = scratch(1, pitch * pairs);
    pack_left(s, a + member * a_step, row, rows_here, pitch, packed);
    for (int64_t p = begin; p < std::min(begin + share, panels); ++p) {
      const int64_t width = std::min<int64_t>(kColumns, s.n - p * kColumns);
      for (int64_t first = 0; first < pairs; first += depth) {
        const int64_t here = std::min(depth, pairs - first);
        right.pack(first, here, p * kColumns, panel);
        for (int64_t m = 0; m < rows_here; m += kRows) {
          const int num_rows = std::min<int64_t>(kRows, rows_here - m);
          const float* rows[kRows];
          float* results[kRows];
          for (int i = 0; i < num_rows; ++i) {
            rows[i] = packed + (m + i) * (s.a_transposed ? 1 : pairs);
            results[i] = out + (member * s.m + row + m + i) * s.n + p * kColumns;
          }
          product<Pairs>(num_rows, rows, offsets.data() + first, here, panel, kColumns, results, width, first > 0);
        }
      }
    }
  };
  share_out(pool, operations, s.members * blocks * shares, task);
}

}  // namespace accelnet
#endif
