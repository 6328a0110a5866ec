// InferencePool v1 of Gateway API's Inference Extension, as far as manifests here use it: no package has its types.
// Owns the names and values of its fields. Never its status, which controllers write.
export interface IInferencePool {
  apiVersion: "inference.networking.k8s.io/v1";
  kind: "InferencePool";
  metadata: { name: string; namespace?: string; labels?: Record<string, string>; annotations?: Record<string, string> };
  spec: {
    selector: { matchLabels: Record<string, string> };
    targetPorts: { number: number }[];
    endpointPickerRef: {
      group?: string;
      kind?: string;
      name: string;
      port?: { number: number };
      failureMode?: "FailOpen" | "FailClose";
    };
  };
}
