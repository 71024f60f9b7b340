// Vectors of LANES floats, and the functions that gates need. Included once per
// instruction set (see each_isa.h), inside its namespace; LANES is set there.

using Vec __attribute__((vector_size(4 * LANES))) = float;
using IVec __attribute__((vector_size(4 * LANES))) = int32_t;

// A width in whole vectors.
inline int64_t padded(int64_t width) { return (width + LANES - 1) / LANES * LANES; }

// A vector at an address of any alignment.
struct __attribute__((packed, aligned(4), may_alias)) Loose {
  Vec v;
};

inline Vec load(const float* p) { return reinterpret_cast<const Loose*>(p)->v; }
inline void store(float* p, Vec v) { reinterpret_cast<Loose*>(p)->v = v; }
inline Vec splat(float x) { return x - Vec{}; }

// The first `count` floats; the rest of the vector is 0 and nothing beyond them is touched.
inline Vec load(const float* p, int64_t count) {
  if (count >= LANES) return load(p);
  Vec v{};
  for (int64_t j = 0; j < count; ++j) v[j] = p[j];
  return v;
}
inline void store(float* p, Vec v, int64_t count) {
  if (count >= LANES) return store(p, v);
  for (int64_t j = 0; j < count; ++j) p[j] = v[j];
}

// Loads bfloat16 numbers, which are the upper halves of floats.
struct __attribute__((packed, aligned(2), may_alias)) LooseHalf {
  uint16_t v __attribute__((vector_size(2 * LANES)));
};
inline Vec load(const uint16_t* p) {
  const IVec wide = __builtin_convertvector(reinterpret_cast<const LooseHalf*>(p)->v, IVec);
  return reinterpret_cast<Vec>(wide << 16);
}
inline Vec load(const uint16_t* p, int64_t count) {
  if (count >= LANES) return load(p);
  IVec wide{};
  for (int64_t j = 0; j < count; ++j) wide[j] = p[j] << 16;
  return reinterpret_cast<Vec>(wide);
}

// Calls f(at, count) for each vector of a row; the last may have fewer than LANES floats.
template <class F>
inline void for_vectors(int64_t width, const F& f) {
  int64_t d = 0;
  for (; d + LANES <= width; d += LANES) f(d, static_cast<int64_t>(LANES));
  if (d < width) f(d, width - d);
}

// The first `count` lanes, the others 0.
inline Vec first(Vec v, int64_t count) {
  for (int64_t j = count; j < LANES; ++j) v[j] = 0.0f;
  return v;
}

inline Vec select(IVec mask, Vec yes, Vec no) { return mask ? yes : no; }
// A NaN in the first argument stays one.
inline Vec max(Vec a, Vec b) { return select(a < b, b, a); }
inline Vec min(Vec a, Vec b) { return select(a > b, b, a); }
inline Vec abs(Vec x) { return reinterpret_cast<Vec>(reinterpret_cast<IVec>(x) & 0x7fffffff); }

// exp(x) = scale · (1 + rest) for x from -87.3 to 88.3: 2^k and a polynomial on [-ln 2/2, ln 2/2].
struct Exponential {
  Vec scale, rest;
};
inline Exponential exponential(Vec x) {
  const Vec shifted = x * 1.44269504f + 12582912.0f;  // rounds to the nearest whole number
  const Vec k = shifted - 12582912.0f;
  const Vec r = (x - k * 0.693359375f) + k * 2.12194440e-4f;
  Vec p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const IVec exponent = __builtin_convertvector(k, IVec) + 127;
  return {reinterpret_cast<Vec>(exponent << 23), p * r * r + r};
}

// exp to about 1 ulp; below -87.3 it is 0.
inline Vec exp(Vec x) {
  const Exponential e = exponential(max(min(x, splat(88.3f)), splat(-87.3f)));
  return select(x < -87.3f, Vec{}, e.scale * e.rest + e.scale);
}
// exp(x) and exp(x) - 1 for x ≤ 0, the latter without cancellation. exp(x) is at least 1e-38.
inline Vec exp_of_negative(Vec x) {
  const Exponential e = exponential(max(x, splat(-87.3f)));
  return e.scale * e.rest + e.scale;
}
inline Vec expm1_of_negative(Vec x) {
  const Exponential e = exponential(max(x, splat(-87.3f)));
  return e.scale * e.rest + (e.scale - 1.0f);
}
// log(1 + x) for x in [0, 1], which is enough for a log-sigmoid.
inline Vec log1p_of_fraction(Vec x) {
  Vec p = splat(0.005232654585f);
  p = p * x - 0.02950507978f;
  p = p * x + 0.07822569296f;
  p = p * x - 0.1366322383f;
  p = p * x + 0.1910599644f;
  p = p * x - 0.2484297958f;
  p = p * x + 0.3331909648f;
  p = p * x - 0.4999949312f;
  p = p * x + 0.9999999699f;
  return p * x;
}

// σ(x) and σ(-x) = 1 - σ(x), each without cancellation, from e = exp(-|x|) and 1/(1 + e).
struct Sigmoid {
  Vec value, complement;
};
inline Sigmoid sigmoid(Vec x, Vec e, Vec inverse) {
  const Vec small = e * inverse;
  const IVec negative = x < 0.0f;
  return {select(negative, small, inverse), select(negative, inverse, small)};
}
inline Sigmoid sigmoid(Vec x) {
  const Vec e = exp_of_negative(-abs(x));
  return sigmoid(x, e, 1.0f / (e + 1.0f));
}
// log σ(x), from e = exp(-|x|).
inline Vec log_sigmoid(Vec x, Vec e) { return min(x, Vec{}) - log1p_of_fraction(e); }

inline Vec with_sign_of(Vec size, Vec x) {
  const IVec sign = reinterpret_cast<IVec>(x) & static_cast<int32_t>(0x80000000);
  return reinterpret_cast<Vec>(reinterpret_cast<IVec>(size) | sign);
}

// cap · tanh(x / cap), or x if cap is 0; and its slope, from its result.
inline Vec soft_cap(Vec x, float cap) {
  if (cap == 0.0f) return x;
  const Vec e = expm1_of_negative(abs(x) * (-2.0f / cap));
  return with_sign_of(-e / (e + 2.0f) * cap, x);
}
inline Vec cap_slope(Vec capped, float cap) {
  if (cap == 0.0f) return splat(1.0f);
  const Vec share = capped * (1.0f / cap);
  return 1.0f - share * share;
}

// The standard normal distribution: Φ(x) and its density φ(x). Φ(-|x|) is φ times a polynomial in
// 1/(1 + p|x|) (the form of Abramowitz and Stegun, 26.2.17, fitted to 1e-7 of the value itself, far
// into the tail).
struct Normal {
  Vec cumulative, density;
};
inline Normal normal(Vec x) {
  const Vec t = 1.0f / (abs(x) * 0.2316419f + 1.0f), e = exp(x * x * -0.5f);
  Vec p = splat(-0.07100337f);
  p = p * t + 0.25018195f;
  p = p * t - 0.20613502f;
  p = p * t + 0.22957362f;
  p = p * t + 0.01113146f;
  p = p * t + 0.10343571f;
  p = p * t + 0.09028367f;
  p = p * t + 0.09253203f;
  const Vec tail = e * p * t;
  return {select(x > 0.0f, 1.0f - tail, tail), e * 0.398942280f};
}

// The lanes `index` of x and, from LANES on, of y.
inline Vec pick(Vec x, Vec y, IVec index) {
#ifdef __clang__
  Vec picked;
  for (int j = 0; j < LANES; ++j) picked[j] = index[j] < LANES ? x[index[j]] : y[index[j] - LANES];
  return picked;
#else
  return __builtin_shuffle(x, y, index);
#endif
}

// Within each group of `size` lanes, lane `which` of the group in all of them; size divides LANES.
inline Vec spread(Vec x, int size, int which) {
  IVec index;
  for (int j = 0; j < LANES; ++j) index[j] = j / size * size + which;
  return pick(x, x, index);
}

// The sum of all lanes.
inline float sum(Vec v) {
  for (int stride = LANES / 2; stride > 0; stride /= 2) {
    IVec index;
    for (int j = 0; j < LANES; ++j) index[j] = (j + stride) % LANES;
    v += pick(v, v, index);
  }
  return v[0];
}

// Lanes of x and y, in alternating groups of kStride, each the sum of two groups.
template <int kStride>
inline Vec fold(Vec x, Vec y) {
  IVec low, high;
  for (int j = 0; j < LANES; ++j) {
    const int base = j / (2 * kStride) * 2 * kStride + j % kStride;
    low[j] = j / kStride % 2 * LANES + base, high[j] = low[j] + kStride;
  }
  return pick(x, y, low) + pick(x, y, high);
}
// Lane j of the result is the sum of all lanes of sums[j].
template <int kStride = 1>
inline Vec sums_of(Vec* sums) {
  if constexpr (kStride == LANES) {
    return sums[0];
  } else {
    for (int j = 0; j < LANES / kStride / 2; ++j) sums[j] = fold<kStride>(sums[2 * j], sums[2 * j + 1]);
    return sums_of<2 * kStride>(sums);
  }
}

// Rows become columns: lane j of square[i] goes to lane i of square[j].
template <int kStride = 1>
inline void transpose_square(Vec square[LANES]) {
  if constexpr (kStride < LANES) {
    IVec low, high;
    for (int j = 0; j < LANES; ++j) {
      const bool second = (j & kStride) != 0;
      low[j] = second ? LANES + j - kStride : j, high[j] = second ? LANES + j : j + kStride;
    }
    for (int i = 0; i < LANES; ++i)
      if ((i & kStride) == 0) {
        const Vec x = square[i], y = square[i + kStride];
        square[i] = pick(x, y, low), square[i + kStride] = pick(x, y, high);
      }
    transpose_square<2 * kStride>(square);
  }
}
