# Warnings of the host compiler and of nvcc, as usage requirements of an interface library.
include_guard(GLOBAL)

# ovs_set_warnings(<target> <as_errors>)
function(ovs_set_warnings target as_errors)
    set(host -Wall -Wextra -Wshadow -Wnon-virtual-dtor)
    if(as_errors)
        list(APPEND host -Werror)
    endif()
    target_compile_options(${target} INTERFACE "$<$<COMPILE_LANG_AND_ID:CXX,GNU,Clang,AppleClang>:${host}>")
    # nvcc hands these to the host compiler, which also sees nvcc's generated code: only what that code passes.
    target_compile_options(${target} INTERFACE "$<$<COMPILE_LANG_AND_ID:CUDA,NVIDIA>:-Xcompiler=-Wall,-Wextra>")
    if(as_errors)
        target_compile_options(${target} INTERFACE "$<$<COMPILE_LANG_AND_ID:CUDA,NVIDIA>:-Werror=all-warnings>")
    endif()
endfunction()
