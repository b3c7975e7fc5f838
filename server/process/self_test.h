// The warm-up: every kernel in use, forward and backward, held against the
// oracle before the first client is let in.
#ifndef ATTND_SERVER_PROCESS_SELF_TEST_H_
#define ATTND_SERVER_PROCESS_SELF_TEST_H_

#include "absl/status/status.h"
#include "core/attention_engine.h"

namespace attnd::server {

// OK, or INTERNAL that says which shape is wrong by how much. Takes
// milliseconds.
absl::Status RunSelfTest(AttentionEngine& engine);

}  // namespace attnd::server

#endif  // ATTND_SERVER_PROCESS_SELF_TEST_H_
