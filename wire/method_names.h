// The full names of the methods of attnd/v1/attention.proto, and of the health
// check. Pass them to gRPC to call a method.
#ifndef ATTND_WIRE_METHOD_NAMES_H_
#define ATTND_WIRE_METHOD_NAMES_H_

namespace attnd::method {

inline constexpr char kAttention[] = "/attnd.v1.AttentionService/Attention";
inline constexpr char kSelfAttention[] =
    "/attnd.v1.AttentionService/SelfAttention";
inline constexpr char kCrossAttention[] =
    "/attnd.v1.AttentionService/CrossAttention";
inline constexpr char kAttentionBackward[] =
    "/attnd.v1.AttentionService/AttentionBackward";
inline constexpr char kAttentionStream[] =
    "/attnd.v1.AttentionService/AttentionStream";
inline constexpr char kBenchmark[] = "/attnd.v1.AttentionService/Benchmark";
inline constexpr char kMemoryEstimate[] =
    "/attnd.v1.AttentionService/MemoryEstimate";
inline constexpr char kGetServerInfo[] =
    "/attnd.v1.AttentionService/GetServerInfo";
inline constexpr char kHealthCheck[] = "/grpc.health.v1.Health/Check";

}  // namespace attnd::method

#endif  // ATTND_WIRE_METHOD_NAMES_H_
