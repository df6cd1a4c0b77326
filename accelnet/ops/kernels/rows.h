// Rows of a table by their numbers.
#pragma once

#include "product.h"

namespace accelnet {

// The row that a number names, of which negative ones count from the end; none (-1) where the table does not have it.
inline int64_t row_of(int32_t number, int64_t rows) {
  const int64_t row = number < 0 ? number + rows : number;
  return row < rows ? std::max<int64_t>(row, -1) : -1;
}

// out[member][i] = table[member][numbers[member][i]]; numbers beyond the table name its first or its last row.
template <typename Pool>
void take_rows(Pool& pool, int64_t members, int64_t rows, int64_t row_bytes, const char* table, int64_t table_step,
               const int32_t* numbers, int64_t numbers_step, int64_t count, char* out) {
  const int64_t together = std::max<int64_t>(1, (int64_t{64} << 10) / std::max<int64_t>(1, row_bytes));
  parallel_for(pool, ceil_div(members * count, together), [&](int64_t task) {
    for (int64_t i = task * together; i < std::min(members * count, (task + 1) * together); ++i) {
      const int64_t member = i / count;
      const int64_t row = std::clamp<int64_t>(numbers[member * numbers_step + i % count], 0, rows - 1);
      std::memcpy(out + i * row_bytes, table + member * table_step + row * row_bytes, row_bytes);
    }
  });
}

}  // namespace accelnet
