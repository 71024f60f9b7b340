// One step of an sLSTM cell, for one instruction set (see each_isa.h).

// The gates of LANES units of one sample.
struct Cell {
  Vec h, c, n, m;                    // the new state
  Vec share, z, o, slope, y;         // what the backward reads
};
__attribute__((always_inline)) inline Cell step(const Vec preact[4], Vec c, Vec n, Vec m, bool exp_gate) {
  // One division instead of three: a quotient costs as much as a dozen products.
  const Vec e_f = exp_of_negative(-abs(preact[1])), e_o = exp_of_negative(-abs(preact[3]));
  const Vec em_z = expm1_of_negative(abs(preact[2]) * -2.0f);
  const Vec f_den = e_f + 1.0f, o_den = e_o + 1.0f, z_den = em_z + 2.0f;
  const Vec inverse = 1.0f / (f_den * o_den * z_den);
  const Vec z = with_sign_of(-em_z * (inverse * f_den * o_den), preact[2]);
  const Vec o = sigmoid(preact[3], e_o, inverse * f_den * z_den).value;
  Vec log_f = preact[1], slope = splat(1.0f);
  if (!exp_gate) {
    log_f = log_sigmoid(preact[1], e_f);
    slope = sigmoid(preact[1], e_f, inverse * o_den * z_den).complement;
  }
  // m is the larger of log_f + m and log_i, so that one of i and f is 1. An empty memory (n = 0)
  // keeps nothing, whatever its m.
  const Vec log_i = preact[0], carried = log_f + m, more = carried - log_i;
  const Vec smaller = exp_of_negative(-abs(more));
  const IVec empty = n == 0.0f, kept = more > 0.0f;
  const Vec f = select(empty, Vec{}, select(kept, splat(1.0f), smaller));
  const Vec i = select(~empty & kept, smaller, splat(1.0f));
  const Vec m_new = select(~empty & kept, carried, log_i);
  const Vec c_new = f * c + i * z, fn = f * n, n_new = fn + i;
  const Vec n_inverse = 1.0f / n_new, y = c_new * n_inverse;
  const Vec keep = fn * n_inverse, write = i * n_inverse;
  // keep and write sum to 1: the smaller one determines both exactly, and its sign says which it
  // is. The sign of slope, which is itself never negative, says whether log_i is m.
  const Vec share = select(keep < write, keep, -write);
  return {o * y, c_new, n_new, m_new, share, z, o, select(~empty & kept, slope, -slope), y};
}
