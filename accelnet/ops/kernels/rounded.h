// Rows rounded to 8 bits times weights of 8 or 4 bits: exact sums of whole numbers, with the same bits on every machine.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "product.h"

namespace accelnet {

// Weights lie in panels of kPanel columns, of each four depths side by side (a quad): [panels, quads, kPanel, 4] int8
// between -127 and 127, or of 4 bits [panels, quads / 2, kPanel, 4], plus 8: an even quad in the low half of each byte,
// the next one in the high half.
constexpr int kPanel = 16;

struct Packed {
  const uint8_t* data;
  const float* scale;  // of each column
  int64_t columns, quads;
  bool halves;  // 4 bits
  int64_t panel_bytes() const { return quads * kPanel * (halves ? 2 : 4); }
};

// Rows of int8, and what makes them the numbers they were: their scale, and the sum of a row.
struct Rounded {
  const int8_t* const* rows;
  const float* scales;
  const int32_t* sums;
};

// The instructions. `add` adds products of 16 columns with a quad of a row; `unsigned_by` was added to their weights.
#if defined(__AVX512VNNI__)
struct Vnni {
  static constexpr int kTileRows = 6, kTilePanels = 4, kRowPanels = 8;
  using Columns = __m512i;
  using Sum = __m512i;
  static constexpr int32_t unsigned_by(bool halves) { return halves ? 8 : 128; }
  static Columns whole(const uint8_t* from) {
    return _mm512_xor_si512(_mm512_loadu_si512(from), _mm512_set1_epi8(static_cast<char>(0x80)));
  }
  static Columns low(const uint8_t* from) { return _mm512_and_si512(_mm512_loadu_si512(from), _mm512_set1_epi8(15)); }
  static Columns high(const uint8_t* from) {
    return _mm512_and_si512(_mm512_srli_epi16(_mm512_loadu_si512(from), 4), _mm512_set1_epi8(15));
  }
  template <bool halves>
  static void add(Sum& sum, Columns weights, int32_t quad) {
    sum = _mm512_dpbusd_epi32(sum, weights, _mm512_set1_epi32(quad));
  }
  static void write(const Sum& sum, int32_t* to) { _mm512_storeu_si512(to, sum); }
};
#endif

#if defined(__AVX2__)
// The signs of a row go to the weights: |row| times 127 twice stays below 2^15, where maddubs saturates.
struct Avx2 {
  static constexpr int kTileRows = 4, kTilePanels = 1, kRowPanels = 4;
  struct Columns { __m256i left, right; };
  using Sum = Columns;
  static constexpr int32_t unsigned_by(bool halves) { return halves ? 8 : 0; }
  static __m256i half(const uint8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
  static Columns whole(const uint8_t* from) { return {half(from), half(from + 32)}; }
  static Columns low(const uint8_t* from) {
    const __m256i mask = _mm256_set1_epi8(15);
    return {_mm256_and_si256(half(from), mask), _mm256_and_si256(half(from + 32), mask)};
  }
  static Columns high(const uint8_t* from) {
    const __m256i mask = _mm256_set1_epi8(15);
    return {_mm256_and_si256(_mm256_srli_epi16(half(from), 4), mask),
            _mm256_and_si256(_mm256_srli_epi16(half(from + 32), 4), mask)};
  }
  template <bool halves>
  static __m256i products(__m256i weights, __m256i row) {
    return halves ? _mm256_maddubs_epi16(weights, row)
                  : _mm256_maddubs_epi16(_mm256_abs_epi8(row), _mm256_sign_epi8(weights, row));
  }
  template <bool halves>
  static void add(Sum& sum, Columns weights, int32_t quad) {
    const __m256i row = _mm256_set1_epi32(quad), ones = _mm256_set1_epi16(1);
    sum.left = _mm256_add_epi32(sum.left, _mm256_madd_epi16(products<halves>(weights.left, row), ones));
    sum.right = _mm256_add_epi32(sum.right, _mm256_madd_epi16(products<halves>(weights.right, row), ones));
  }
  static void write(const Sum& sum, int32_t* to) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), sum.left);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 8), sum.right);
  }
};
#endif

struct Plain {
  static constexpr int kTileRows = 4, kTilePanels = 1, kRowPanels = 1;
  struct Columns { int8_t all[kPanel * 4]; };
  struct Sum { int32_t all[kPanel]; };
  static constexpr int32_t unsigned_by(bool halves) { return halves ? 8 : 0; }
  static Columns whole(const uint8_t* from) {
    Columns columns;
    std::memcpy(columns.all, from, sizeof columns.all);
    return columns;
  }
  static Columns low(const uint8_t* from) {
    Columns columns;
    for (int i = 0; i < kPanel * 4; ++i) columns.all[i] = from[i] & 15;
    return columns;
  }
  static Columns high(const uint8_t* from) {
    Columns columns;
    for (int i = 0; i < kPanel * 4; ++i) columns.all[i] = from[i] >> 4;
    return columns;
  }
  template <bool halves>
  static void add(Sum& sum, const Columns& weights, int32_t quad) {
    int8_t row[4];
    std::memcpy(row, &quad, 4);
    for (int n = 0; n < kPanel; ++n) {
      for (int i = 0; i < 4; ++i) sum.all[n] += static_cast<int32_t>(weights.all[4 * n + i]) * row[i];
    }
  }
  static void write(const Sum& sum, int32_t* to) { std::memcpy(to, sum.all, sizeof sum.all); }
};

// sums[m][p][column] of M rows, whose quads lie at their offsets, with P panels.
template <class Isa, bool halves, int M, int P>
inline void rounded_tile(const int8_t* const* rows, const int32_t* offsets, int64_t quads, const uint8_t* panels,
                         int64_t panel_bytes, int32_t* sums) {
  typename Isa::Sum sum[M][P] = {};
  const int8_t* row[M];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) row[m] = rows[m];
  const auto add = [&](int64_t q, const auto& columns) {
    typename Isa::Columns weights[P];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) weights[p] = columns(panels + p * panel_bytes);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      int32_t quad;
      std::memcpy(&quad, row[m] + offsets[q], 4);
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) Isa::template add<halves>(sum[m][p], weights[p], quad);
    }
  };
  for (int64_t q = 0; q < quads; q += halves ? 2 : 1, panels += kPanel * 4) {
    if constexpr (halves) {
      add(q, [](const uint8_t* from) { return Isa::low(from); });
      add(q + 1, [](const uint8_t* from) { return Isa::high(from); });
    } else {
      add(q, [](const uint8_t* from) { return Isa::whole(from); });
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) Isa::write(sum[m][p], sums + (m * P + p) * kPanel);
  }
}

using RoundedTile = void (*)(const int8_t* const*, const int32_t*, int64_t, const uint8_t*, int64_t, int32_t*);

template <class Isa, bool halves, int P, int... M>
constexpr std::array<RoundedTile, sizeof...(M)> rounded_tiles(std::integer_sequence<int, M...>) {
  return {&rounded_tile<Isa, halves, M + 1, P>...};
}

// Of one row, with any number of panels: each sum waits for the one before, so that few panels take as long as many.
template <class Isa, bool halves, int... P>
constexpr std::array<RoundedTile, sizeof...(P)> rounded_rows(std::integer_sequence<int, P...>) {
  return {&rounded_tile<Isa, halves, 1, P + 1>...};
}

// out[m][column] (+)= sums * scales (+ bias), with `relu` 0 where that is negative, for the panels [first, last) of the
// weights and `count` rows.
template <class Isa, bool halves>
void multiply_rounded(int64_t count, const Rounded& given, const int32_t* offsets, const Packed& weights, int64_t first,
                      int64_t last, const float* bias, bool accumulate, bool relu,
                      float* const* out) {
  constexpr auto kRows = std::make_integer_sequence<int, Isa::kTileRows>();
  static constexpr auto wide = rounded_tiles<Isa, halves, Isa::kTilePanels>(kRows), one = rounded_tiles<Isa, halves, 1>(kRows);
  static constexpr auto row = rounded_rows<Isa, halves>(std::make_integer_sequence<int, Isa::kRowPanels>());
  alignas(64) int32_t sums[std::max(Isa::kRowPanels, Isa::kTileRows * Isa::kTilePanels) * kPanel];
  const int64_t bytes = weights.panel_bytes(), tiles = ceil_div(count, Isa::kTileRows);
  for (int64_t p = first, panels; p < last; p += panels) {
    const bool is_row = count == 1;
    panels = is_row ? ceil_div(last - p, ceil_div(last - p, Isa::kRowPanels))
                    : last - p >= Isa::kTilePanels ? Isa::kTilePanels : 1;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t begin = count * tile / tiles, end = count * (tile + 1) / tiles;
      const RoundedTile function = is_row ? row[panels - 1] : (panels == 1 ? one : wide)[end - begin - 1];
      function(given.rows + begin, offsets, weights.quads, weights.data + p * bytes, bytes, sums);
      const int32_t* from = sums;
      for (int64_t m = begin; m < end; ++m) {
        const int32_t added = Isa::unsigned_by(halves) * given.sums[m];
        const float row_scale = given.scales[m];
        for (int64_t column = p * kPanel; column < (p + panels) * kPanel; column += kPanel, from += kPanel) {
          const int64_t width = std::min<int64_t>(kPanel, weights.columns - column);
          float* to = out[m] + column;
          const float* scale = weights.scale + column;
          const float* more = accumulate ? to : bias ? bias + column : nullptr;
          if (width == kPanel) {
            float values[kPanel], scales[kPanel];
            std::memcpy(scales, scale, sizeof scales);
            for (int n = 0; n < kPanel; ++n) values[n] = static_cast<float>(from[n] - added) * (row_scale * scales[n]);
            if (more) {
              for (int n = 0; n < kPanel; ++n) values[n] += more[n];
            }
            if (relu) {
              for (int n = 0; n < kPanel; ++n) values[n] = values[n] < 0 ? 0 : values[n];
            }
            std::memcpy(to, values, sizeof values);
          } else {
            for (int64_t n = 0; n < width; ++n) {
              float value = static_cast<float>(from[n] - added) * (row_scale * scale[n]);
              value = more ? more[n] + value : value;
              to[n] = relu && value < 0 ? 0 : value;
            }
          }
        }
      }
    }
  }
}

using MultiplyRounded = decltype(&multiply_rounded<Plain, false>);

// The product by the best instructions that there are (0), or by others to compare with: AVX2 (1), none (2).
inline MultiplyRounded rounded_product(int64_t instructions, bool halves) {
#if defined(__AVX512VNNI__)
  if (instructions == 0) return halves ? &multiply_rounded<Vnni, true> : &multiply_rounded<Vnni, false>;
#endif
#if defined(__AVX2__)
  if (instructions <= 1) return halves ? &multiply_rounded<Avx2, true> : &multiply_rounded<Avx2, false>;
#endif
  return halves ? &multiply_rounded<Plain, true> : &multiply_rounded<Plain, false>;
}

// The two loops over a row's numbers are written for its instructions: compilers leave them as they are at -O2, where they
// took as long as the product with 300 columns.

// The largest number of a row without its sign, as its bits: NaN, which lies above all others, stays NaN.
inline float largest_of(const float* from, int64_t count) {
  int64_t i = 0;
  uint32_t most = 0;
#if defined(__AVX512F__)
  __m512i largests = _mm512_setzero_si512();
  for (; i + 16 <= count; i += 16) {
    const __m512i bits = _mm512_and_si512(_mm512_loadu_si512(from + i), _mm512_set1_epi32(0x7fffffff));
    largests = _mm512_max_epu32(largests, bits);
  }
  most = _mm512_reduce_max_epu32(largests);
#elif defined(__AVX2__)
  __m256i largests = _mm256_setzero_si256();
  for (; i + 8 <= count; i += 8) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i));
    largests = _mm256_max_epu32(largests, _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff)));
  }
  uint32_t parts[8];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(parts), largests);
  for (uint32_t part : parts) most = std::max(most, part);
#endif
  for (; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, from + i, sizeof bits);
    most = std::max(most, bits & 0x7fffffffu);
  }
  float largest;
  std::memcpy(&largest, &most, sizeof largest);
  return largest;
}

// What a row is multiplied by before it is rounded: 127 / largest, and 0 where that is 0 or is none.
inline float factor_of(float largest) { return largest >= 1e-30f && largest <= 3e38f ? 127.0f / largest : 0.0f; }
// What whole numbers are multiplied by: NaN where the row held what is no number.
inline float scale_of(float largest) { return largest <= 3e38f ? largest * (1.0f / 127.0f) : std::nanf(""); }

// Rounds numbers to int8, half to even, and returns their sum.
inline int32_t round_numbers(const float* from, int64_t count, float factor, int8_t* to) {
  int64_t i = 0;
  int32_t sum = 0;
#if defined(__AVX512F__)
  __m512i sums = _mm512_setzero_si512();
  for (; i + 16 <= count; i += 16) {
    const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(from + i), _mm512_set1_ps(factor)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), _mm512_cvtepi32_epi8(whole));
    sums = _mm512_add_epi32(sums, whole);
  }
  sum = _mm512_reduce_add_epi32(sums);
#elif defined(__AVX2__)
  __m256i sums = _mm256_setzero_si256();
  for (; i + 8 <= count; i += 8) {
    const __m256i whole = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(from + i), _mm256_set1_ps(factor)));
    const __m128i half = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to + i), _mm_packs_epi16(half, half));
    sums = _mm256_add_epi32(sums, whole);
  }
  int32_t parts[8];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(parts), sums);
  for (int32_t part : parts) sum += part;
#endif
  for (; i < count; ++i) {
    const int32_t whole = static_cast<int32_t>(__builtin_rintf(from[i] * factor));
    to[i] = static_cast<int8_t>(whole);
    sum += whole;
  }
  return sum;
}

// Rows of `count` rounded numbers, `quads` quads long, of this thread's own.
struct RoundedRows {
  const int8_t** rows;
  float* scales;
  int32_t* sums;
  int8_t* values;
  int64_t bytes;

  RoundedRows(int64_t count, int64_t quads, int slot)
      : rows(scratch<const int8_t*>(slot, count)), scales(scratch(slot, count)), sums(scratch<int32_t>(slot, count)),
        values(scratch<int8_t>(slot, count * quads * 4)), bytes(quads * 4) {}
  void set(int64_t row, const float* from, int64_t count) {
    int8_t* to = values + row * bytes;
    const float largest = largest_of(from, count);
    rows[row] = to, scales[row] = scale_of(largest);
    sums[row] = round_numbers(from, count, factor_of(largest), to);
    std::memset(to + count, 0, bytes - count);
  }
  Rounded view(int64_t first = 0) const { return {rows + first, scales + first, sums + first}; }
};

// out [members, m, columns] = x [members, m, depth], rounded row by row, times weights, plus a bias or nothing.
struct RoundedProduct {
  int64_t members, m, depth, instructions;
  Packed weights;
  int64_t x_step, weights_step, scale_step, bias_step;
  bool relu;
};

// Below as many products waking a thread takes longer than it saves; so does meeting one of a crew.
constexpr int64_t kRoundedAlone = 1 << 21, kRoundedAloneInCrew = 1 << 18;

template <typename Pool>
void multiply_rounded_rows(Pool& pool, const RoundedProduct& s, const float* x, const float* bias, float* out) {
  const MultiplyRounded multiply = rounded_product(s.instructions, s.weights.halves);
  const int64_t columns = s.weights.columns, panels = ceil_div(columns, kPanel), threads = pool.num_threads();
  const bool alone = threads == 1 || s.members * s.m * columns * s.depth < (pool.crew ? kRoundedAloneInCrew : kRoundedAlone);
  const int64_t wanted = alone ? 1 : 4 * threads;
  // Rows of a task stay in the second cache; where they are few, tasks share the panels.
  const int64_t rows = std::min<int64_t>(s.m, std::max<int64_t>(24, std::min<int64_t>(96, ceil_div(s.members * s.m, wanted))));
  const int64_t blocks = ceil_div(s.m, rows), shares = std::min(panels, alone ? 1 : ceil_div(threads, s.members * blocks));
  const std::vector<int32_t> offsets = multiples(s.weights.quads, 4);
  const auto task = [&](int64_t number) {
    const int64_t share = number % shares, member = number / shares / blocks, first = number / shares % blocks * rows;
    const int64_t count = std::min(rows, s.m - first);
    RoundedRows rounded(count, s.weights.quads, 0);
    float** to = scratch<float*>(0, count);
    for (int64_t row = 0; row < count; ++row) {
      rounded.set(row, x + member * s.x_step + (first + row) * s.depth, s.depth);
      to[row] = out + (member * s.m + first + row) * columns;
    }
    Packed weights = s.weights;
    weights.data += member * s.weights_step, weights.scale += member * s.scale_step;
    multiply(count, rounded.view(), offsets.data(), weights, panels * share / shares, panels * (share + 1) / shares,
             bias ? bias + member * s.bias_step : nullptr, false, s.relu, to);
  };
  const int64_t tasks = s.members * blocks * shares;
  if (alone) {
    for (int64_t number = 0; number < tasks; ++number) task(number);
  } else {
    parallel_for(pool, tasks, task);
  }
}

}  // namespace accelnet
