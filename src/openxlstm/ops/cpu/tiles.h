// Tiles of rows, for one instruction set (see each_isa.h): the part of the work that is one task.

constexpr int64_t kTileRows = 64;
inline int64_t tiles(int64_t rows, int64_t most = kTileRows) { return (rows + most - 1) / most; }

// Some steps of one sample of (B, T, ·); the tiles of a sample differ by at most one step.
struct Tile {
  int64_t b, t0, rows, at;  // sample, first step, number of steps, first row of (B·T, ·)
  Tile(int64_t task, int64_t T)
      : b(task / tiles(T)),
        t0(task % tiles(T) * T / tiles(T)),
        rows((task % tiles(T) + 1) * T / tiles(T) - t0),
        at(b * T + t0) {}
};

// Calls f(head, row, count, h) for up to LANES rows of a tile and their part of h (B, NH, T, DH).
template <class F>
inline void for_head_rows(const float* h, int64_t NH, int64_t T, int64_t DH, const Tile& tile,
                          const F& f) {
  for (int64_t r = 0; r < tile.rows; r += LANES)
    for (int64_t head = 0; head < NH; ++head)
      f(head, r, std::min<int64_t>(LANES, tile.rows - r),
        h + ((tile.b * NH + head) * T + tile.t0 + r) * DH);
}
