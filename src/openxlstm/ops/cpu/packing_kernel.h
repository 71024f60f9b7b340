// The packing of weights, for one instruction set (see each_isa.h).

#include "rows.h"

#include "product.h"
