// Lets tests write the sizes of a CostQuery as `{.batch = 2, .q_len = 9}`.
#ifndef ATTND_TESTS_COST_SIZES_H_
#define ATTND_TESTS_COST_SIZES_H_

#include <cstdint>

#include "cost/cost_query.h"

namespace attnd {

// The sizes of a query. 0 means the default.
struct Sizes {
  int64_t seq_len = 0;
  int64_t dimensions = 0;
  int64_t batch = 0;
  int64_t num_q_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t q_len = 0;
  int64_t kv_len = 0;
  int64_t head_dim = 0;
  int64_t v_head_dim = 0;
  int64_t threads = 0;
  int64_t concurrency = 0;
};

// Returns `query` with `sizes`. Does not set defaults.
inline CostQuery WithSizes(CostQuery query, const Sizes& sizes) {
  query.seq_len.value = sizes.seq_len;
  query.dimensions.value = sizes.dimensions;
  query.batch.value = sizes.batch;
  query.num_q_heads.value = sizes.num_q_heads;
  query.num_kv_heads.value = sizes.num_kv_heads;
  query.q_len.value = sizes.q_len;
  query.kv_len.value = sizes.kv_len;
  query.head_dim.value = sizes.head_dim;
  query.v_head_dim.value = sizes.v_head_dim;
  query.threads.value = sizes.threads;
  query.concurrency.value = sizes.concurrency;
  return query;
}

}  // namespace attnd

#endif  // ATTND_TESTS_COST_SIZES_H_
