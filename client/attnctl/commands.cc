#include "client/attnctl/commands.h"

namespace attnd::attnctl {

Json StatsJson(const client::ExecutionStats& stats) {
  return {{"isa", stats.isa},
          {"kernel", stats.kernel},
          {"tile_q", stats.tile_q},
          {"tile_kv", stats.tile_kv},
          {"threads", stats.threads},
          {"queue_time_ms", absl::ToDoubleMilliseconds(stats.queue_time)},
          {"compute_time_ms", absl::ToDoubleMilliseconds(stats.compute_time)},
          {"flops", stats.flops},
          {"workspace_bytes", stats.workspace_bytes}};
}

}  // namespace attnd::attnctl
