// Norms of groups of floats, for one instruction set (see each_isa.h). LANES groups are normed
// together: their sums over lanes, roots and quotients cost hardly more than those of one group.

// Mean and 1/deviation of up to LANES groups. For an RMS norm the mean is 0 and the deviation the
// root of the mean square.
struct Moments {
  float mean[LANES], inverse[LANES];
};
inline Vec normed(Vec x, const Moments& m, int64_t group) {
  return (x - m.mean[group]) * m.inverse[group];
}

// The moments of `count` groups that begin `stride` floats apart.
inline Moments moments(const float* x, int64_t stride, int64_t count, int64_t width, float eps,
                       bool centred = true) {
  const float share = 1.0f / static_cast<float>(width);
  Moments m;
  Vec total[LANES] = {}, squares[LANES] = {};
  for (int64_t j = 0; j < count && centred; ++j) {
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

// Gradients through the norm: groups of d hold those of the normed groups, and afterwards those of
// the groups themselves.
inline void through_norm(const float* x, int64_t stride, int64_t count, int64_t width,
                         const Moments& m, float* d, int64_t ld, bool centred = true) {
  const float share = 1.0f / static_cast<float>(width);
  Vec totals[LANES] = {}, along[LANES] = {};
  for (int64_t j = 0; j < count; ++j) {
    Vec sum{}, dot{};
    for_vectors(width, [&](int64_t e, int64_t n) {
      const Vec v = load(d + j * ld + e, n);
      sum += v;
      dot += v * normed(load(x + j * stride + e, n), m, j);
    });
    totals[j] = centred ? sum : Vec{}, along[j] = dot;
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

// The norm of rows of `groups` groups, each `width` wide.
struct NormedRows {
  int64_t groups, width;
  const float* weight;          // (groups·width), the scale less `stored_less`
  float eps;
  const float* bias = nullptr;  // (groups·width), or null
  bool centred = true;          // a layer norm, else a root mean square
  float stored_less = 1.0f;

  Vec scaled(Vec x, int64_t at, int64_t n) const {
    const Vec y = x * (load(weight + at, n) + stored_less);
    return bias == nullptr ? y : y + load(bias + at, n);
  }
  // y = norm(x), scaled; rows of x and y are ldx and ldy apart.
  void forward(const float* x, int64_t ldx, int64_t rows, float* y, int64_t ldy) const {
    for_groups(rows, [&](int64_t row, int64_t count, int64_t group) {
      const int64_t begin = group * width;
      const float* from = x + row * ldx + begin;
      const Moments m = moments(from, ldx, count, width, eps, centred);
      for (int64_t j = 0; j < count; ++j)
        for_vectors(width, [&](int64_t d, int64_t n) {
          store(y + (row + j) * ldy + begin + d,
                scaled(normed(load(from + j * ldx + d, n), m, j), begin + d, n), n);
        });
    });
  }
  // dx from dy, which may be the same memory; dweight and dbias (groups·width) += their gradients,
  // dbias only if there is a bias.
  void backward(const float* x, int64_t ldx, int64_t rows, const float* dy, float* dx, int64_t ldd,
                float* dweight, float* dbias = nullptr) const {
    for_groups(rows, [&](int64_t row, int64_t count, int64_t group) {
      const int64_t begin = group * width;
      const float* from = x + row * ldx + begin;
      const Moments m = moments(from, ldx, count, width, eps, centred);
      for_vectors(width, [&](int64_t d, int64_t n) {
        const Vec scale = load(weight + begin + d, n) + stored_less;
        Vec along{}, total{};
        for (int64_t j = 0; j < count; ++j) {
          const int64_t at = (row + j) * ldd + begin + d;
          const Vec v = load(dy + at, n);
          along += v * normed(load(from + j * ldx + d, n), m, j), total += v;
          store(dx + at, v * scale, n);
        }
        store(dweight + begin + d, load(dweight + begin + d, n) + along, n);
        if (bias != nullptr) store(dbias + begin + d, load(dbias + begin + d, n) + total, n);
      });
      through_norm(from, ldx, count, width, m, dx + row * ldd + begin, ldd, centred);
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

// The norm of a large block's rows: an RMS norm whose weight is the scale.
inline NormedRows rms_rows(int64_t width, const float* weight, const float* bias, float eps) {
  return {1, width, weight, eps, bias, false, 0.0f};
}
