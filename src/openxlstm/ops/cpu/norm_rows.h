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

// A row of `groups` groups, each normed, and scaled by 1 + weight.
inline void norm_row(const float* x, int64_t groups, int64_t width, const float* weight, float eps,
                     float* y) {
  for (int64_t g = 0; g < groups; ++g) {
    const Moments m = moments(x + g * width, width, eps);
    for (int64_t d = 0; d < width; d += LANES) {
      const int64_t at = g * width + d, count = width - d;
      store(y + at, normed(load(x + at, count), m) * (load(weight + at, count) + 1.0f), count);
    }
  }
}
// Back through one such group: d holds the gradient of y, and afterwards that of x; dweight is added
// to.
inline void norm_back(const float* x, int64_t width, const float* weight, float eps, float* d,
                      float* dweight) {
  const Moments m = moments(x, width, eps);
  for (int64_t j = 0; j < width; j += LANES) {
    const int64_t count = width - j;
    const Vec dy = load(d + j, count);
    store(dweight + j, load(dweight + j, count) + dy * normed(load(x + j, count), m), count);
    store(d + j, dy * (load(weight + j, count) + 1.0f), count);
  }
  through_norm(x, m, d, width);
}
