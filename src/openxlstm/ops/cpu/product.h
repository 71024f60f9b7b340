// Products of small matrices that lie in cache, for one instruction set (see each_isa.h).
//
// C (M, N) = or += A (M, K) B (K, N). Rows of B and C are padded with zeros to whole vectors, so N
// is counted in vectors. An element of A is broadcast, so A may be transposed: strides, not a copy.

constexpr int kRows = REGISTERS >= 32 ? 6 : 3;
constexpr int kVectors = REGISTERS >= 32 ? 4 : 3;

template <int MR, int NV>
inline void product_block(int64_t K, const float* A, int64_t row, int64_t col, const float* B,
                          int64_t ldb, float* C, int64_t ldc, bool add) {
  Vec sum[MR][NV];
  for (int r = 0; r < MR; ++r)
    for (int v = 0; v < NV; ++v) sum[r][v] = add ? load(C + r * ldc + v * LANES) : Vec{};
  for (int64_t k = 0; k < K; ++k, A += col, B += ldb) {
    Vec b[NV];
    for (int v = 0; v < NV; ++v) b[v] = load(B + v * LANES);
    for (int r = 0; r < MR; ++r) {
      const Vec a = splat(A[r * row]);
      for (int v = 0; v < NV; ++v) sum[r][v] += a * b[v];
    }
  }
  for (int r = 0; r < MR; ++r)
    for (int v = 0; v < NV; ++v) store(C + r * ldc + v * LANES, sum[r][v]);
}

template <int MR>
inline void product_rows(int64_t vectors, int64_t K, const float* A, int64_t row, int64_t col,
                         const float* B, int64_t ldb, float* C, int64_t ldc, bool add) {
  // Panels of about equal width: six vectors are three and three, not four and two.
  const int64_t panels = (vectors + kVectors - 1) / kVectors;
  for (int64_t p = 0; p < panels; ++p) {
    const int64_t first = p * vectors / panels, width = (p + 1) * vectors / panels - first;
    const float* b = B + first * LANES;
    float* c = C + first * LANES;
    switch (width) {
      case 1: product_block<MR, 1>(K, A, row, col, b, ldb, c, ldc, add); break;
      case 2: product_block<MR, 2>(K, A, row, col, b, ldb, c, ldc, add); break;
      case 3: product_block<MR, 3>(K, A, row, col, b, ldb, c, ldc, add); break;
      case 4: if constexpr (kVectors >= 4) product_block<MR, 4>(K, A, row, col, b, ldb, c, ldc, add); break;
    }
  }
}

// Which of the products of a causal matrix are left out, since they are zero or not looked at.
enum class Causal {
  kNone,
  kLowerOut,  // C (t, s): only s ≤ t is computed, up to a whole tile
  kLowerIn,   // A (t, s): zero for s > t
  kUpperIn,   // A (s, t): zero for t < s
};

inline void product(int64_t M, int64_t N, int64_t K, const float* A, int64_t row, int64_t col,
                    const float* B, int64_t ldb, float* C, int64_t ldc, bool add,
                    Causal causal = Causal::kNone) {
  for (int64_t r = 0; r < M;) {
    const int64_t left = M - r, rows = left >= kRows ? kRows : (left >= 2 ? 2 : 1);
    int64_t vectors = (N + LANES - 1) / LANES, k0 = 0, k1 = K;
    if (causal == Causal::kLowerOut)
      vectors = std::min(vectors, (r + rows + LANES - 1) / LANES);
    if (causal == Causal::kLowerIn) k1 = std::min(K, r + rows);
    if (causal == Causal::kUpperIn) k0 = std::min(K, r);
    const float* a = A + r * row + k0 * col;
    const float* b = B + k0 * ldb;
    float* c = C + r * ldc;
    switch (rows) {
      case 1: product_rows<1>(vectors, k1 - k0, a, row, col, b, ldb, c, ldc, add); break;
      case 2: product_rows<2>(vectors, k1 - k0, a, row, col, b, ldb, c, ldc, add); break;
      default: product_rows<kRows>(vectors, k1 - k0, a, row, col, b, ldb, c, ldc, add); break;
    }
    r += rows;
  }
}
