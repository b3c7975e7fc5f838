// Compares every kernel that this machine uses, forward and backward, with the
// oracle. The server does so before it accepts the first client.
#ifndef ATTND_SERVER_PROCESS_SELF_TEST_H_
#define ATTND_SERVER_PROCESS_SELF_TEST_H_

#include "absl/status/status.h"
#include "core/attention_engine.h"

namespace attnd::server {

// Returns OK, or INTERNAL with the shape that is wrong and by how much. Takes
// some milliseconds.
absl::Status RunSelfTest(AttentionEngine& engine);

}  // namespace attnd::server

#endif  // ATTND_SERVER_PROCESS_SELF_TEST_H_
