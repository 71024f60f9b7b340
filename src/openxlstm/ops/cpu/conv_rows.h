// The causal convolution of rows in cache, for one instruction set (see each_isa.h).
//
// A window holds the K-1 rows before a tile and then the tile's own rows. Weights are (K, width),
// the weight of the newest step last. Rows before a reset are not read.

// How many earlier rows each step of a tile reads: up to K-1, and none before the last reset.
inline void compute_reach(const bool* reset, int64_t t0, int64_t steps, int64_t K, int64_t* reach) {
  for (int64_t s = 0; s < steps; ++s) {
    reach[s] = K - 1;
    for (int64_t back = 0; reset != nullptr && back < std::min(K - 1, t0 + s + 1); ++back)
      if (reset[t0 + s - back]) {
        reach[s] = back;
        break;
      }
  }
}

// preact (steps, width), rows ldp apart. `window` points at the row of the first step; the K-1
// earlier rows are in front of it.
inline void convolve(const float* window, int64_t ld, int64_t steps, int64_t width,
                     const float* weight, const float* bias, int64_t K, const int64_t* reach,
                     float* preact, int64_t ldp) {
  for (int64_t d = 0; d < width; d += LANES) {
    Vec w[kMaxKernel];
    for (int64_t back = 0; back < K; ++back) w[back] = load(weight + (K - 1 - back) * width + d);
    const Vec b = load(bias + d);
    for (int64_t s = 0; s < steps; ++s) {
      Vec sum = b;
      for (int64_t back = 0; back <= reach[s]; ++back)
        sum += w[back] * load(window + (s - back) * ld + d);
      store(preact + s * ldp + d, sum);
    }
  }
}

// dinput += the gradient through the convolution, for the rows from `begin`, which may be before
// the tile, up to `steps`. preact's gradients (extended, ld) are those of the tile and of up to K-1
// rows after it.
inline void convolve_back(const float* dpreact, int64_t extended, int64_t ld, int64_t begin,
                          int64_t steps, int64_t width, const float* weight, int64_t K,
                          const int64_t* reach, float* dinput, int64_t ldi) {
  for (int64_t d = 0; d < width; d += LANES) {
    Vec w[kMaxKernel];
    for (int64_t back = 0; back < K; ++back) w[back] = load(weight + (K - 1 - back) * width + d);
    for (int64_t s = begin; s < steps; ++s) {
      Vec sum = load(dinput + s * ldi + d);
      for (int64_t back = std::max<int64_t>(0, -s); back < K && s + back < extended; ++back)
        if (back <= reach[s + back]) sum += w[back] * load(dpreact + (s + back) * ld + d);
      store(dinput + s * ldi + d, sum);
    }
  }
}

// dweight (K, width) and dbias (width) += their gradients from a tile.
inline void convolve_sums(const float* dpreact, const float* window, int64_t ld, int64_t steps,
                          int64_t width, int64_t K, const int64_t* reach, float* dweight,
                          float* dbias) {
  for (int64_t d = 0; d < width; d += LANES) {
    Vec w[kMaxKernel] = {}, b{};
    for (int64_t s = 0; s < steps; ++s) {
      const Vec g = load(dpreact + s * ld + d);
      b += g;
      for (int64_t back = 0; back <= reach[s]; ++back)
        w[back] += g * load(window + (s - back) * ld + d);
    }
    for (int64_t back = 0; back < K; ++back) {
      float* to = dweight + (K - 1 - back) * width + d;
      store(to, load(to) + w[back]);
    }
    store(dbias + d, load(dbias + d) + b);
  }
}

// Copies the K-1 rows before step t0 of one sample: from x (T, D), rows `stride` apart, and, before
// its first step, from `before` (K-1, D), null for zeros.
inline void copy_before(const float* x, int64_t stride, const float* before, int64_t D, int64_t t0,
                        int64_t K, float* to, int64_t ld) {
  for (int64_t j = 0; j < K - 1; ++j) {
    const int64_t t = t0 - (K - 1) + j;
    if (t >= 0) copy_rows(x + t * stride, stride, 1, D, to + j * ld, ld);
    else if (before != nullptr) copy_rows(before + (t + K - 1) * D, D, 1, D, to + j * ld, ld);
    else fill(to + j * ld, ld, 0.0f);
  }
}
