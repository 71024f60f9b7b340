// Linear maps of a step's rows, for one instruction set (see each_isa.h).

// The address of an element of a matrix.
inline const void* at(const Step& s, const void* matrix, int64_t element) {
  return static_cast<const char*>(matrix) + element * (s.narrow ? 2 : 4);
}

// y (B, N) = x (B, K) · Wᵀ + bias, for W (N, K).
struct Map {
  int64_t N;
  const void* W;
  const float* bias;  // null for none
  float* y;
  int64_t ldy;
};
// The outputs n0 … n0 + LANES of a map.
template <class Weight>
inline void map_block(const Map& map, int64_t B, int64_t K, const float* x, int64_t ldx, int64_t n0) {
  const int64_t N = map.N;
  const Weight* rows[LANES];
  for (int j = 0; j < LANES; ++j)
    rows[j] = static_cast<const Weight*>(map.W) + std::min(n0 + j, N - 1) * K;
  for (int64_t b = 0; b < B; ++b) {
    const float* in = x + b * ldx;
    Vec sums[LANES] = {};
    int64_t k = 0;
    for (; k + LANES <= K; k += LANES) {
      const Vec v = load(in + k);
      for (int j = 0; j < LANES; ++j) sums[j] += v * load(rows[j] + k);
    }
    if (k < K) {
      const Vec v = load(in + k, K - k);
      for (int j = 0; j < LANES; ++j) sums[j] += v * load(rows[j] + k, K - k);
    }
    Vec out = sums_of(sums);
    if (map.bias != nullptr) out += load(map.bias + n0, N - n0);
    store(map.y + b * map.ldy + n0, out, N - n0);
  }
}
// Maps of the same x. From kManyWeights weights on they are divided among threads.
constexpr int64_t kManyWeights = 1 << 18;
inline void maps(const Step& s, int64_t K, const float* x, int64_t ldx,
                 std::initializer_list<Map> all) {
  int64_t blocks = 0, rows = 0;
  for (const Map& map : all) blocks += (map.N + LANES - 1) / LANES, rows += map.N;
  const auto run = [&](int64_t begin, int64_t end) {
    int64_t first = 0;
    for (const Map& map : all) {
      const int64_t past = first + (map.N + LANES - 1) / LANES;
      for (int64_t block = std::max(begin, first); block < std::min(end, past); ++block) {
        const int64_t n0 = (block - first) * LANES;
        if (s.narrow) map_block<uint16_t>(map, s.B, K, x, ldx, n0);
        else map_block<float>(map, s.B, K, x, ldx, n0);
      }
      first = past;
    }
  };
  if (rows * K < kManyWeights) run(0, blocks);
  else torch::stable::parallel_for(0, blocks, 1, run);
}
inline void map(const Step& s, int64_t N, int64_t K, const void* W, const float* bias,
                const float* x, int64_t ldx, float* y, int64_t ldy) {
  maps(s, K, x, ldx, {{N, W, bias, y, ldy}});
}
