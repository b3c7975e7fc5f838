// The reasons of errors, one for each kind. An error carries its reason in
// google.rpc.ErrorInfo, so that programs can tell errors apart. A released
// reason never changes. To add a reason, add it here, also to kServerReasons,
// and to docs/metrics.md. One reason is elsewhere because core raises it:
// kInt64RangeReason in base/field_error.h, for sizes that do not fit a signed
// 64-bit number. UNAUTHENTICATED has no reason and no details: gRPC refuses a
// call without a valid token before attnd sees it, and can send only a text.
#ifndef ATTND_WIRE_REASONS_H_
#define ATTND_WIRE_REASONS_H_

#include <string_view>

#include "base/field_error.h"

namespace attnd {

// INVALID_ARGUMENT: one field has a wrong value. BadRequest names the field.
inline constexpr char kInvalidField[] = "INVALID_FIELD";
// INVALID_ARGUMENT: the bytes are not a message of the type that the method
// takes.
inline constexpr char kMalformedMessage[] = "MALFORMED_MESSAGE";
// INVALID_ARGUMENT: the message has more fields, or more numbers in lists, than
// any request needs.
inline constexpr char kTooManyFields[] = "TOO_MANY_FIELDS";
// RESOURCE_EXHAUSTED: the call does not fit the memory budget. The error has
// RetryInfo if the call can succeed later.
inline constexpr char kMemoryBudget[] = "MEMORY_BUDGET";
// RESOURCE_EXHAUSTED: the server already has --max-in-flight requests, and the
// client has its share of them. The error has RetryInfo.
inline constexpr char kTooManyRequests[] = "TOO_MANY_REQUESTS";
// RESOURCE_EXHAUSTED: with the calls that the server already has, the call
// would end after its deadline, or would make another one end after its own.
// The error has RetryInfo, unless the call would take too long even alone.
inline constexpr char kDeadlineUnreachable[] = "DEADLINE_UNREACHABLE";
// RESOURCE_EXHAUSTED: from the server, the response would exceed its
// --max-message-bytes; from the client library, the request would exceed the
// client's own limit.
inline constexpr char kMessageTooLarge[] = "MESSAGE_TOO_LARGE";
// RESOURCE_EXHAUSTED: the system did not let the server start a thread for a
// benchmark. The error has RetryInfo.
inline constexpr char kThreadLimit[] = "THREAD_LIMIT";
// RESOURCE_EXHAUSTED: a benchmark needs more arithmetic than the server allows,
// or none of its repetitions ended within --max-benchmark-seconds.
inline constexpr char kWorkLimit[] = "WORK_LIMIT";
// PERMISSION_DENIED: the method is only for callers whose token has the role
// admin.
inline constexpr char kAdminRoleRequired[] = "ADMIN_ROLE_REQUIRED";
// UNIMPLEMENTED: the contract allows the request, but this build does not
// support it.
inline constexpr char kNotImplemented[] = "NOT_IMPLEMENTED";
// FAILED_PRECONDITION: the server was started without --shm-socket.
inline constexpr char kSharedMemoryOff[] = "SHARED_MEMORY_OFF";
// NOT_FOUND: no shared region has this handle. It was never registered, or it
// is no longer registered.
inline constexpr char kUnknownRegion[] = "UNKNOWN_REGION";
// UNAVAILABLE: the server is shutting down. Another server may take the call.
inline constexpr char kDraining[] = "DRAINING";
// DEADLINE_EXCEEDED: the caller's deadline has passed, so the server has
// stopped computing.
inline constexpr char kDeadlineExceeded[] = "DEADLINE_EXCEEDED";
// DEADLINE_EXCEEDED: the client of AttentionStream sent too little within
// --stream-idle-timeout. If a client does not read its answer, the server ends
// the call instead, and the client gets CANCELLED from gRPC, without a reason.
inline constexpr char kStreamIdle[] = "STREAM_IDLE";
// CANCELLED: the caller or a shutdown of the server ended the call, so the
// server has stopped computing.
inline constexpr char kCancelled[] = "CANCELLED";
// INTERNAL: attnd has a bug. The server sends this reason for nothing else.
inline constexpr char kInternal[] = "INTERNAL";
// INTERNAL, from the client library: the server's answer contradicts the
// contract.
inline constexpr char kBadResponse[] = "BAD_RESPONSE";

// Every reason that a server sends. The metrics count the errors of each.
inline constexpr std::string_view kServerReasons[] = {
    kInvalidField,      kMalformedMessage, kTooManyFields,
    kMemoryBudget,      kTooManyRequests,  kDeadlineUnreachable,
    kMessageTooLarge,   kThreadLimit,      kWorkLimit,
    kAdminRoleRequired, kNotImplemented,   kSharedMemoryOff,
    kUnknownRegion,     kDraining,         kDeadlineExceeded,
    kStreamIdle,        kCancelled,        kInternal,
    kInt64RangeReason};

}  // namespace attnd

#endif  // ATTND_WIRE_REASONS_H_
