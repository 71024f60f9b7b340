// Norms of groups of floats, for one instruction set (see each_isa.h). LANES groups go together: their
// sums over lanes, roots and quotients then cost hardly more than those of one.

// x less its mean, over its standard deviation, of up to LANES groups.
struct Moments {
  float mean[LANES], inverse[LANES];  // of the deviation
};
inline Vec normed(Vec x, const Moments& m, int64_t group) {
  return (x - m.mean[group]) * m.inverse[group];
}

// Of `count` groups that begin `stride` floats apart.
inline Moments moments(const float* x, int64_t stride, int64_t count, int64_t width, float eps) {
  const float share = 1.0f / static_cast<float>(width);
  Moments m;
  Vec total[LANES] = {}, squares[LANES] = {};
  for (int64_t j = 0; j < count; ++j) {
    Vec sum{};
    for_vectors(width, [&](int64_t d, int64_t n) { sum += load(x + j * stride + d, n); });
    total[j] = sum;
  }
  store(m.mean, sums_of(total) * share);
  for (int64_t j = 0; j < count; ++j) {
    Vec sum{};
    for_vectors(width, [&](int64_t d, int64_t n) {
      const Vec v = load(x + j * stride + d, n) - m.mean[j];
      sum += n == LANES ? v * v : first(v * v, n);
    });
    squares[j] = sum;
  }
  store(m.inverse, sums_of(squares) * share + eps);
  for (int64_t j = 0; j < count; ++j) m.inverse[j] = 1.0f / std::sqrt(m.inverse[j]);
  return m;
}

// The gradients of such groups from those of their normed selves: what is left of them across the
// mean and the deviation. Groups of d hold the latter, and afterwards the former.
inline void through_norm(const float* x, int64_t stride, int64_t count, int64_t width,
                         const Moments& m, float* d, int64_t ld) {
  const float share = 1.0f / static_cast<float>(width);
  Vec totals[LANES] = {}, along[LANES] = {};
  for (int64_t j = 0; j < count; ++j) {
    Vec sum{}, dot{};
    for_vectors(width, [&](int64_t e, int64_t n) {
      const Vec v = load(d + j * ld + e, n);
      sum += v;
      dot += v * normed(load(x + j * stride + e, n), m, j);
    });
    totals[j] = sum, along[j] = dot;
  }
  float mean[LANES], slope[LANES];
  store(mean, sums_of(totals) * share), store(slope, sums_of(along) * share);
  for (int64_t j = 0; j < count; ++j)
    for_vectors(width, [&](int64_t e, int64_t n) {
      const Vec v = normed(load(x + j * stride + e, n), m, j);
      float* to = d + j * ld + e;
      store(to, (load(to, n) - mean[j] - v * slope[j]) * m.inverse[j], n);
    });
}

// Rows of groups that lie side by side: `groups` of a row, each of `width`.
struct NormedRows {
  int64_t groups, width;
  const float* weight;  // (groups·width), the scale less 1
  float eps;

  // y = norm(x), scaled; rows of x and y are ldx and ldy apart.
  void forward(const float* x, int64_t ldx, int64_t rows, float* y, int64_t ldy) const {
    for_groups(rows, [&](int64_t row, int64_t count, int64_t group) {
      const float* from = x + row * ldx + group * width;
      const float* w = weight + group * width;
      const Moments m = moments(from, ldx, count, width, eps);
      for (int64_t j = 0; j < count; ++j)
        for_vectors(width, [&](int64_t d, int64_t n) {
          store(y + (row + j) * ldy + group * width + d,
                normed(load(from + j * ldx + d, n), m, j) * (load(w + d, n) + 1.0f), n);
        });
    });
  }
  // dx from dy, which may be the same; dweight (groups·width) is added to.
  void backward(const float* x, int64_t ldx, int64_t rows, const float* dy, float* dx, int64_t ldd,
                float* dweight) const {
    for_groups(rows, [&](int64_t row, int64_t count, int64_t group) {
      const int64_t begin = group * width;
      const float* from = x + row * ldx + begin;
      const Moments m = moments(from, ldx, count, width, eps);
      for_vectors(width, [&](int64_t d, int64_t n) {
        const Vec scale = load(weight + begin + d, n) + 1.0f;
        Vec sum{};
        for (int64_t j = 0; j < count; ++j) {
          const int64_t at = (row + j) * ldd + begin + d;
          const Vec v = load(dy + at, n);
          sum += v * normed(load(from + j * ldx + d, n), m, j);
          store(dx + at, v * scale, n);
        }
        store(dweight + begin + d, load(dweight + begin + d, n) + sum, n);
      });
      through_norm(from, ldx, count, width, m, dx + row * ldd + begin, ldd);
    });
  }

 private:
  // Calls f(row, count, group) for the same group of `count` rows.
  template <class F>
  void for_groups(int64_t rows, const F& f) const {
    for (int64_t row = 0; row < rows; row += LANES)
      for (int64_t group = 0; group < groups; ++group)
        f(row, std::min<int64_t>(LANES, rows - row), group);
  }
};
