// Products of matrices for one instruction set (see each_isa.h): C (M, N) = or += A (M, K) B (K,
// N).
//
// A block of C stays in registers over the whole depth K. An element of A is broadcast, so A may be
// transposed by its strides. Rows of B and C are in scratch memory, padded to whole vectors. A
// large B is packed first, into panels that are as wide as a block and stay in L1.

constexpr int kVectors = REGISTERS >= 32 ? 4 : 2;
constexpr int kRows = 6;
// A narrow block has more rows: with fewer sums, additions would wait for each other.
constexpr int kNarrowRows = REGISTERS >= 32 ? 12 : 6;
constexpr int64_t kPanel = kVectors * LANES;
constexpr int64_t kDepth = 8192 / kPanel;  // steps of K that a panel is read over: 32 KiB

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

// Rows of a block that is NV vectors wide, when `left` rows are left.
template <int NV>
constexpr int64_t block_rows(int64_t left) {
  if (NV <= 2 && left >= kNarrowRows) return kNarrowRows;
  return left >= kRows ? kRows : left >= 4 ? 4 : left >= 2 ? 2 : 1;
}

template <int NV>
inline void block_of(int64_t rows, int64_t K, const float* A, int64_t row, int64_t col,
                     const float* B, int64_t ldb, float* C, int64_t ldc, bool add) {
  switch (rows) {
    case 1: product_block<1, NV>(K, A, row, col, B, ldb, C, ldc, add); break;
    case 2: product_block<2, NV>(K, A, row, col, B, ldb, C, ldc, add); break;
    case 4: product_block<4, NV>(K, A, row, col, B, ldb, C, ldc, add); break;
    case kRows: product_block<kRows, NV>(K, A, row, col, B, ldb, C, ldc, add); break;
    default:
      if constexpr (NV <= 2 && kNarrowRows > kRows)
        product_block<kNarrowRows, NV>(K, A, row, col, B, ldb, C, ldc, add);
  }
}

// Which products of a causal matrix are skipped, since they are zero or never read.
enum class Causal {
  kNone,
  kLowerOut,  // C (t, s): only s ≤ t is computed, up to a whole block
  kLowerIn,   // A (t, s): zero for s > t
  kUpperIn,   // A (s, t): zero for t < s
};

// All rows of the columns of one block.
template <int NV>
inline void product_column(int64_t M, int64_t K, const float* A, int64_t row, int64_t col,
                           const float* B, int64_t ldb, float* C, int64_t ldc, bool add,
                           Causal causal, int64_t column) {
  for (int64_t r = 0; r < M;) {
    const int64_t rows = block_rows<NV>(M - r);
    const int64_t k0 = causal == Causal::kUpperIn ? std::min(K, r) : 0;
    const int64_t k1 = causal == Causal::kLowerIn ? std::min(K, r + rows) : K;
    if (causal != Causal::kLowerOut || column < r + rows)
      block_of<NV>(rows, k1 - k0, A + r * row + k0 * col, row, col, B + k0 * ldb, ldb, C + r * ldc,
                   ldc, add);
    r += rows;
  }
}

inline void product_columns(int64_t vectors, int64_t M, int64_t K, const float* A, int64_t row,
                            int64_t col, const float* B, int64_t ldb, float* C, int64_t ldc,
                            bool add, Causal causal = Causal::kNone, int64_t column = 0) {
  switch (vectors) {
    case 1: product_column<1>(M, K, A, row, col, B, ldb, C, ldc, add, causal, column); break;
    case 2: product_column<2>(M, K, A, row, col, B, ldb, C, ldc, add, causal, column); break;
    case 3: if constexpr (kVectors >= 3) product_column<3>(M, K, A, row, col, B, ldb, C, ldc, add, causal, column); break;
    case 4: if constexpr (kVectors >= 4) product_column<4>(M, K, A, row, col, B, ldb, C, ldc, add, causal, column); break;
  }
}

inline void product(int64_t M, int64_t N, int64_t K, const float* A, int64_t row, int64_t col,
                    const float* B, int64_t ldb, float* C, int64_t ldc, bool add,
                    Causal causal = Causal::kNone) {
  // Columns of about equal width: six vectors become three and three, not four and two.
  const int64_t vectors = padded(N) / LANES, columns = (vectors + kVectors - 1) / kVectors;
  for (int64_t p = 0; p < columns; ++p) {
    const int64_t first = p * vectors / columns, width = (p + 1) * vectors / columns - first;
    product_columns(width, M, K, A, row, col, B + first * LANES, ldb, C + first * LANES, ldc, add,
                    causal, first * LANES);
  }
}

// B (K, N), whose rows or columns are dense, packed for product_packed: panel by panel (K, width).
// The last panel has the remaining whole vectors of N, padded with zeros.
inline int64_t packed_size(int64_t K, int64_t N) { return K * padded(N); }
inline int64_t num_panels(int64_t N) { return (N + kPanel - 1) / kPanel; }
inline int64_t panel_width(int64_t N, int64_t panel) {
  return std::min(kPanel, padded(N) - panel * kPanel);
}

inline void pack_panel(const float* B, int64_t row, int64_t col, int64_t K, int64_t N,
                       int64_t panel, float* packed) {
  const int64_t width = panel_width(N, panel), n0 = panel * kPanel, in = std::min(width, N - n0);
  float* to = packed + n0 * K;
  B += n0 * col;
  if (col == 1) return copy_rows(B, row, K, in, to, width);
  transpose(B, col, in, K, to, width);
}

inline void product_packed(int64_t M, int64_t N, int64_t K, const float* A, int64_t row,
                           int64_t col, const float* packed, float* C, int64_t ldc, bool add) {
  for (int64_t k0 = 0; k0 < K; k0 += kDepth)
    for (int64_t p = 0; p < num_panels(N); ++p) {
      const int64_t width = panel_width(N, p);
      product_columns(width / LANES, M, std::min(kDepth, K - k0), A + k0 * col, row, col,
                      packed + p * kPanel * K + k0 * width, width, C + p * kPanel, ldc,
                      add || k0 > 0);
    }
}
