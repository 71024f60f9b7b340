// Norms of a group of floats, for one instruction set (see each_isa.h).

// x less its mean, over its standard deviation.
struct Moments {
  float mean, inverse;  // of the deviation
};
inline Moments moments(const float* x, int64_t width, float eps) {
  Vec total{};
  for (int64_t d = 0; d < width; d += LANES) total += load(x + d, width - d);
  const float mean = sum(total) / static_cast<float>(width);
  Vec squares{};
  for (int64_t d = 0; d < width; d += LANES) {
    const Vec v = load(x + d, width - d) - mean;
    squares += width - d >= LANES ? v * v : first(v * v, width - d);
  }
  return {mean, 1.0f / std::sqrt(sum(squares) / static_cast<float>(width) + eps)};
}
inline Vec normed(Vec x, Moments m) { return (x - m.mean) * m.inverse; }

// The gradient of x from that of its normed self: what is left of it across the mean and the
// deviation. d holds the latter, and afterwards the former.
inline void through_norm(const float* x, Moments m, float* d, int64_t width) {
  Vec total{}, along{};
  for (int64_t j = 0; j < width; j += LANES) {
    const Vec v = load(d + j, width - j);
    total += v;
    along += v * normed(load(x + j, width - j), m);
  }
  const float mean = sum(total) / static_cast<float>(width);
  const float slope = sum(along) / static_cast<float>(width);
  for (int64_t j = 0; j < width; j += LANES) {
    const Vec v = normed(load(x + j, width - j), m);
    store(d + j, (load(d + j, width - j) - mean - v * slope) * m.inverse, width - j);
  }
}

// Rows (rows, width) of x normed and scaled by 1 + weight, into rows ldy apart.
inline void norm_rows(const float* x, int64_t rows, int64_t width, const float* weight, float eps,
                      float* y, int64_t ldy) {
  for (int64_t r = 0; r < rows; ++r) {
    const Moments m = moments(x + r * width, width, eps);
    for (int64_t d = 0; d < width; d += LANES) {
      const int64_t count = width - d;
      const Vec scale = load(weight + d, count) + 1.0f;
      store(y + r * ldy + d, first(normed(load(x + r * width + d, count), m) * scale, count));
    }
  }
}
