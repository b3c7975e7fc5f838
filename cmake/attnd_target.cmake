# attnd_target(NAME): turns on warnings and sanitizers for a target of this project.
# Third-party and generated headers are SYSTEM headers, for which compilers do not warn.
#
# attnd_thin_grpc(NAME FILE...): excludes files that include grpcpp from thread
# sanitizer. Debian's gRPC is not instrumented, so the sanitizer cannot see its locks
# and would report races that do not exist. Keep these files short. Files that use a
# message with a map (google.rpc.ErrorInfo) need the same, because protobuf's
# map_field.h gives such a message another layout in instrumented code than in Debian's
# libprotobuf, and the program would crash.

function(attnd_target name)
  target_include_directories(${name} PUBLIC
    $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>)
  target_compile_options(${name} PRIVATE
    -Wall -Wextra -Wconversion -Wsign-conversion -Wshadow -Wvla
    $<$<BOOL:${ATTND_WERROR}>:-Werror>)
  attnd_sanitize(${name})
endfunction()

function(attnd_sanitize name)
  if(ATTND_SANITIZE)
    target_compile_options(${name} PRIVATE
      -fsanitize=${ATTND_SANITIZE} -fno-omit-frame-pointer)
    if(NOT ATTND_SANITIZE STREQUAL "thread")
      target_compile_options(${name} PRIVATE -fno-sanitize-recover=all)
    endif()
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
      # GCC's manual says that this warning is often false with a sanitizer on.
      # Builds without a sanitizer keep it.
      target_compile_options(${name} PRIVATE -Wno-maybe-uninitialized)
    endif()
    target_link_options(${name} PUBLIC -fsanitize=${ATTND_SANITIZE})
  endif()
endfunction()

function(attnd_thin_grpc name)
  if(ATTND_SANITIZE STREQUAL "thread")
    set_source_files_properties(${ARGN} TARGET_DIRECTORY ${name} PROPERTIES
      COMPILE_OPTIONS "-fno-sanitize=thread")
  endif()
endfunction()
