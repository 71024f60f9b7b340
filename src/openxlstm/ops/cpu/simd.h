// Vectors of LANES floats, and the functions that gates are made of. Included once for each
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

inline Vec select(IVec mask, Vec yes, Vec no) {
  return reinterpret_cast<Vec>((mask & reinterpret_cast<IVec>(yes)) |
                               (~mask & reinterpret_cast<IVec>(no)));
}
inline Vec max(Vec a, Vec b) { return select(a > b, a, b); }
inline Vec min(Vec a, Vec b) { return select(a < b, a, b); }

// exp to about 1 ulp, by 2^k and a polynomial on [-ln 2 / 2, ln 2 / 2]. Below -87 it is 0.
inline Vec exp(Vec x) {
  const Vec clamped = max(min(x, splat(88.3f)), splat(-87.3f));
  const Vec shifted = clamped * 1.44269504f + 12582912.0f;  // rounds to the nearest whole number
  const Vec k = shifted - 12582912.0f;
  const Vec r = (clamped - k * 0.693359375f) + k * 2.12194440e-4f;
  Vec p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const IVec exponent = __builtin_convertvector(k, IVec) + 127;
  const Vec result = p * reinterpret_cast<Vec>(exponent << 23);
  return select(x < -87.3f, Vec{}, result);
}

// log(1 + x) for x in [0, 1], all that a log-sigmoid needs.
inline Vec log1p_of_fraction(Vec x) {
  // log(1 + x) = 2 atanh(x / (2 + x)), whose argument is at most 1/3: a short odd series.
  const Vec s = x / (x + 2.0f), s2 = s * s;
  Vec p = splat(1.0f / 17);
  p = p * s2 + 1.0f / 15;
  p = p * s2 + 1.0f / 13;
  p = p * s2 + 1.0f / 11;
  p = p * s2 + 1.0f / 9;
  p = p * s2 + 1.0f / 7;
  p = p * s2 + 1.0f / 5;
  p = p * s2 + 1.0f / 3;
  return 2.0f * (s + s * s2 * p);
}

inline Vec abs(Vec x) { return reinterpret_cast<Vec>(reinterpret_cast<IVec>(x) & 0x7fffffff); }

// σ(x) and σ(-x) = 1 - σ(x), each without cancellation, and log σ(x).
struct Sigmoid {
  Vec value, complement, log;
};
inline Sigmoid sigmoid(Vec x) {
  const Vec e = exp(-abs(x));  // in (0, 1]
  const Vec small = e / (e + 1.0f), large = 1.0f / (e + 1.0f);
  const IVec positive = x > 0.0f;
  return {select(positive, large, small), select(positive, small, large),
          min(x, Vec{}) - log1p_of_fraction(e)};
}

// tanh(x): a ratio of exponentials, and near 0 its series, where the ratio would cancel.
inline Vec tanh(Vec x) {
  const Vec a = abs(x), e = exp(-2.0f * a);
  const Vec ratio = (1.0f - e) / (1.0f + e);
  const Vec x2 = x * x;
  Vec p = splat(-1382.0f / 155925);
  p = p * x2 + 62.0f / 2835;
  p = p * x2 - 17.0f / 315;
  p = p * x2 + 2.0f / 15;
  p = p * x2 - 1.0f / 3;
  const Vec series = a + a * x2 * p;
  const Vec result = select(a < 0.25f, series, ratio);
  return select(x < 0.0f, -result, result);
}
