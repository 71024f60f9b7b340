// Small operations on rows of floats in cache, for one instruction set (see each_isa.h).
// A row in scratch memory is padded with zeros to whole vectors: ld floats, a multiple of LANES.

// The ld of a matrix that is read down its columns: an odd number of cache lines. With an even
// number the rows would share few sets of L1 and evict each other.
inline int64_t odd_lines(int64_t width) { return ((width + 15) / 16 | 1) * 16; }

inline void copy_rows(const float* from, int64_t stride, int64_t rows, int64_t width, float* to,
                      int64_t ld) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t d = 0; d < ld; d += LANES)
      store(to + r * ld + d, d < width ? load(from + r * stride + d, width - d) : Vec{});
}
inline bool is_zero(const float* x, int64_t floats) {
  IVec any{};
  for (int64_t d = 0; d < floats; d += LANES) any |= load(x + d) != 0.0f;
  for (int j = 0; j < LANES; ++j)
    if (any[j]) return false;
  return true;
}
// Without padding: other columns of `to` stay as they are.
inline void copy_part(const float* from, int64_t stride, int64_t rows, int64_t width, float* to,
                      int64_t ld) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t d = 0; d < width; d += LANES)
      store(to + r * ld + d, load(from + r * stride + d, width - d), width - d);
}
inline void write_rows(const float* from, int64_t ld, int64_t rows, int64_t width, float* to,
                       int64_t stride) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t d = 0; d < width; d += LANES)
      store(to + r * stride + d, load(from + r * ld + d), width - d);
}
// to += from
inline void add_rows(const float* from, int64_t stride, int64_t rows, int64_t width, float* to,
                     int64_t ld) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t d = 0; d < width; d += LANES)
      store(to + r * ld + d, load(to + r * ld + d) + load(from + r * stride + d, width - d));
}
// Each row += bias (width), if there is one.
inline void add_bias(float* x, int64_t ld, int64_t rows, int64_t width, const float* bias) {
  if (bias == nullptr) return;
  for (int64_t d = 0; d < width; d += LANES) {
    const Vec b = load(bias + d, width - d);
    for (int64_t r = 0; r < rows; ++r) store(x + r * ld + d, load(x + r * ld + d) + b);
  }
}
inline void fill(float* x, int64_t floats, float value) {
  for (int64_t d = 0; d < floats; d += LANES) store(x + d, splat(value));
}
// to (cols, ldt) = fromᵀ, for from (rows, cols), rows ld apart. With `pad`, rows of `to` are filled
// with 0 up to ldt.
inline void transpose(const float* from, int64_t ld, int64_t rows, int64_t cols, float* to,
                      int64_t ldt, bool pad = true) {
  const int64_t end = pad ? ldt : rows;
  for (int64_t r = 0; r < end; r += LANES)
    for (int64_t c = 0; c < cols; c += LANES) {
      Vec square[LANES];
      for (int64_t j = 0; j < LANES; ++j)
        square[j] = r + j < rows ? load(from + (r + j) * ld + c, cols - c) : Vec{};
      transpose_square(square);
      for (int64_t j = 0; j < std::min<int64_t>(LANES, cols - c); ++j)
        store(to + (c + j) * ldt + r, square[j], end - r);
    }
}
inline void scale_row(float* x, int64_t ld, float by) {
  for (int64_t d = 0; d < ld; d += LANES) store(x + d, load(x + d) * by);
}
inline void add_scaled(float* x, const float* y, int64_t ld, float by) {
  for (int64_t d = 0; d < ld; d += LANES) store(x + d, load(x + d) + load(y + d) * by);
}
inline float dot(const float* x, const float* y, int64_t ld) {
  Vec s{};
  for (int64_t d = 0; d < ld; d += LANES) s += load(x + d) * load(y + d);
  return sum(s);
}
// sums (ld) += the sum of some rows.
inline void add_column_sums(float* sums, const float* x, int64_t stride, int64_t rows,
                            int64_t width) {
  for (int64_t d = 0; d < width; d += LANES) {
    Vec s{};
    for (int64_t r = 0; r < rows; ++r) s += load(x + r * stride + d, width - d);
    store(sums + d, load(sums + d) + s);
  }
}
// sums (ld) += the sum of some rows, each times its weight.
inline void add_weighted_rows(float* sums, const float* x, const float* weight, int64_t rows,
                              int64_t ld) {
  for (int64_t d = 0; d < ld; d += LANES) {
    Vec s = load(sums + d);
    for (int64_t r = 0; r < rows; ++r) s += load(x + r * ld + d) * weight[r];
    store(sums + d, s);
  }
}
// Prefetches a row that is read, or written, a step later: rows of one sample are read too far
// apart in time for hardware prefetching.
template <bool kWrite>
inline void prefetch(const float* row, int64_t width) {
  for (int64_t d = 0; d < width; d += 16) __builtin_prefetch(row + d, kWrite, 3);
}
